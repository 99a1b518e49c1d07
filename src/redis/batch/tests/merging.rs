//! What is merged into one step.

use super::support::{QUOTA, ScriptedRedis, Setup, split_steps};

#[tokio::test(start_paused = true)]
async fn commands_queued_during_a_call_are_sent_as_one() {
    let mut setup = Setup::new(ScriptedRedis::new(0));
    let (a, b) = (QUOTA.scope("a"), QUOTA.scope("b"));
    setup.ask([a.clone()]);
    setup.settle().await;
    for _ in 0..10 {
        setup.ask([a.clone()]);
        setup.ask([b.clone()]);
    }
    setup.settle().await;
    assert_eq!(
        setup.redis.calls().len(),
        1,
        "no timer, and no second call for so few"
    );
    setup.redis.answers.add_permits(2);
    setup.settle().await;
    let calls = setup.redis.calls();
    assert_eq!(calls[0].firsts, [[1.0, 0.0, 1.0]]);
    assert_eq!(calls[1].keys, ["a", "b"]);
    // Requests for different buckets commute, so equal ones are merged across each other.
    assert_eq!(calls[1].firsts, [[10.0, 0.0, 1.0]; 2]);
    assert!(calls.iter().all(|call| call.steps.is_empty()));
    assert_eq!(setup.answered().len(), 21);
}

#[tokio::test(start_paused = true)]
async fn requests_for_one_bucket_keep_their_order() {
    let mut setup = Setup::new(ScriptedRedis::new(9));
    let (a, b) = (QUOTA.scope("a"), QUOTA.scope("b"));
    setup.ask([a.clone()]);
    setup.ask([a.clone()]);
    setup.ask([a.clone().cost(5.0)]);
    setup.ask([a.clone()]);
    setup.ask_for([a.clone()], 7.0, true);
    setup.ask([a.clone(), b.clone()]);
    setup.ask([b.clone()]);
    setup.give_back(&b, 2.0);
    setup.ask([b.clone()]);
    setup.settle().await;
    let [call] = &setup.redis.calls()[..] else {
        panic!("one call");
    };
    assert_eq!(call.firsts, [[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]);
    let expected: [&[f64]; 7] = [
        &[0.0, 1.0, 0.0, 1.0, 1.0, 5.0],
        &[0.0, 1.0, 0.0, 1.0, 1.0, 1.0],
        &[0.0, 1.0, 7.0, 1.0, 1.0, 1.0],
        &[0.0, 1.0, 0.0, 2.0, 1.0, 1.0, 2.0, 1.0],
        &[0.0, 1.0, 0.0, 1.0, 2.0, 1.0],
        &[1.0, 2.0, 2.0],
        &[0.0, 1.0, 0.0, 1.0, 2.0, 1.0],
    ];
    assert_eq!(call.steps, expected.concat());
    assert_eq!(setup.answered(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn similar_waits_are_merged_by_the_shortest() {
    let mut setup = Setup::new(ScriptedRedis::new(0));
    let a = QUOTA.scope("a");
    setup.ask([QUOTA.scope("b")]);
    setup.settle().await;
    for n in 0..100 {
        setup.ask_for([a.clone()], 5e6 + f64::from(n % 7), true);
    }
    // No caller waits for longer than requested. A caller that does not wait is not merged with one
    // that does.
    setup.ask_for([a.clone()], 4.9e6, true);
    setup.ask_for([a.clone()], 1.0, true);
    setup.ask_for([a.clone()], 0.0, true);
    setup.settle().await;
    setup.redis.answers.add_permits(2);
    setup.settle().await;
    let call = &setup.redis.calls()[1];
    // They have been queued for 1 ms.
    assert_eq!(call.firsts, [[100.0, 5e6 - 1e3, 1.0]]);
    let expected: [&[f64]; 2] = [
        &[0.0, 1.0, 4.9e6 - 1e3, 1.0, 1.0, 1.0],
        &[0.0, 2.0, 0.0, 1.0, 1.0, 1.0],
    ];
    assert_eq!(split_steps(&call.steps), expected);
    assert_eq!(setup.answered().len(), 104);
}

#[tokio::test(start_paused = true)]
async fn operations_on_one_bucket_are_summed() {
    let mut setup = Setup::new(ScriptedRedis::new(0));
    let a = QUOTA.scope("a");
    setup.ask([QUOTA.scope("b")]);
    setup.settle().await;
    for _ in 0..10 {
        setup.give_back(&a, 2.0);
        setup.give_back(&QUOTA.scope("b"), 1.0);
    }
    for _ in 0..10 {
        setup.charge(&a, 3.0);
    }
    setup.ask([a.clone()]);
    setup.charge(&a, 1.0);
    setup.settle().await;
    setup.redis.answers.add_permits(2);
    setup.settle().await;
    let expected: [&[f64]; 5] = [
        &[1.0, 1.0, 20.0],
        &[1.0, 2.0, 10.0],
        &[2.0, 1.0, 30.0],
        &[0.0, 1.0, 0.0, 1.0, 1.0, 1.0],
        &[2.0, 1.0, 1.0],
    ];
    assert_eq!(split_steps(&setup.redis.calls()[1].steps), expected);
    assert_eq!(setup.answered().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn requests_are_merged_across_returned_tokens() {
    let mut setup = Setup::new(ScriptedRedis::new(0));
    let a = QUOTA.scope("a");
    setup.ask([QUOTA.scope("b")]);
    setup.settle().await;
    for _ in 0..40 {
        setup.give_back(&a, 2.0);
        setup.ask([a.clone()]);
    }
    // A cap applies to tokens returned before it, and not to those returned after it.
    setup.cap_level(&a, 5.0);
    setup.give_back(&a, 1.0);
    setup.redis.answers.add_permits(2);
    setup.settle().await;
    let expected: [&[f64]; 4] = [
        &[1.0, 1.0, 80.0],
        &[0.0, 40.0, 0.0, 1.0, 1.0, 1.0],
        &[5.0, 1.0, 5.0],
        &[1.0, 1.0, 1.0],
    ];
    assert_eq!(split_steps(&setup.redis.calls()[1].steps), expected);
    assert_eq!(setup.answered().len(), 41);
}

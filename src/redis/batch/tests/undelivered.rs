//! What becomes of commands that are not delivered.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;

use super::support::{QUOTA, ScriptedRedis, Setup};
use crate::{decision::FailureKind, redis::op::Op};

#[tokio::test(start_paused = true)]
async fn cancelled_request_is_not_sent() {
    let mut setup = Setup::new(ScriptedRedis::new(9));
    setup.ask_for([QUOTA.scope("a")], 0.0, false);
    setup.settle().await;
    assert!(setup.redis.calls().is_empty());
    setup.ask([QUOTA.scope("a")]);
    setup.settle().await;
    assert_eq!(setup.redis.calls().len(), 1);
    assert_eq!(setup.answered(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn failure_answers_requests_queued_behind_it() {
    let mut setup = Setup::new(ScriptedRedis {
        fails: true,
        ..ScriptedRedis::new(0)
    });
    setup.ask([QUOTA.scope("a")]);
    setup.settle().await;
    for _ in 0..50 {
        setup.ask([QUOTA.scope("a")]);
    }
    let start = Instant::now();
    setup.redis.answers.add_permits(1);
    setup.settle().await;
    assert!(start.elapsed() <= Duration::from_millis(1));
    assert_eq!(setup.redis.calls().len(), 1);
    let answers = setup.answers.lock().expect("no panic");
    assert_eq!(answers.len(), 51);
    assert!(
        answers
            .iter()
            .all(|(_, answer)| *answer == Err(FailureKind::Timeout))
    );
}

#[tokio::test(start_paused = true)]
async fn undelivered_corrections_are_recorded_in_the_ledger() {
    let mut setup = Setup::new(ScriptedRedis {
        fails: true,
        ..ScriptedRedis::new(0)
    });
    let scope = QUOTA.scope("a");
    setup.give_back(&scope, 1.0);
    setup.charge(&scope, 2.0);
    setup.ask([scope.clone()]);
    setup.settle().await;
    setup.give_back(&scope, 4.0);
    setup.charge(&scope, 8.0);
    setup.redis.answers.add_permits(1);
    setup.settle().await;
    // The call in flight may have been executed: charges are repeated, and tokens are not returned
    // again.
    let corrections = setup.ledger.corrections.lock().expect("no panic").clone();
    assert_eq!(corrections, [2.0, -4.0, 8.0]);
    assert_eq!(setup.redis.calls().len(), 1);
}

#[test]
fn requests_are_made_again_when_the_runtime_shuts_down() {
    let mut setup = Setup::new(ScriptedRedis::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        setup.ask([QUOTA.scope("a")]);
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        setup.ask([QUOTA.scope("a")]);
    });
    drop(runtime);
    assert_eq!(setup.made_again.lock().expect("no panic")[..], [0, 1]);
    assert!(setup.answered().is_empty());
    assert!(setup.redis.is_abandoned.load(Ordering::Relaxed));
}

/// It may have been executed: charges and pauses are repeated, and tokens are not returned again.
#[test]
fn call_in_flight_at_shutdown_is_recorded_in_the_ledger() {
    let mut setup = Setup::new(ScriptedRedis::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let scope = QUOTA.scope("a");
        setup.charge(&scope, 5.0);
        setup.give_back(&scope, 3.0);
        setup.batcher.send(&scope, Op::Pause { us: 0.0 });
        setup.ask([scope.clone()]);
        while setup.redis.calls().is_empty() {
            tokio::task::yield_now().await;
        }
        // Queued behind the call, this was certainly not executed.
        setup.give_back(&scope, 7.0);
    });
    drop(runtime);
    assert_eq!(setup.redis.calls().len(), 1);
    assert_eq!(
        setup.ledger.corrections.lock().expect("no panic")[..],
        [5.0, -7.0]
    );
    assert_eq!(setup.ledger.pauses.lock().expect("no panic")[..], ["a"]);
    assert_eq!(setup.made_again.lock().expect("no panic")[..], [0]);
}

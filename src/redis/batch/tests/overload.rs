//! More requests than Redis decides in time.

use std::time::Duration;

use tokio::time::Instant;

use super::support::{QUOTA, ScriptedRedis, Setup, TIMEOUT};
use crate::{decision::FailureKind, redis::batch::queue::MAX_QUEUED};

/// A batcher over a Redis that takes this long for each call of 128 keys.
fn slow(takes: Duration) -> Setup {
    Setup::new(ScriptedRedis {
        takes,
        ..ScriptedRedis::new(usize::MAX >> 4)
    })
}

#[tokio::test(start_paused = true)]
async fn burst_stays_queued_while_redis_works_it_off() {
    // 160 calls.
    let mut setup = slow(TIMEOUT / 20);
    for key in 0..20_480 {
        setup.ask([QUOTA.scope("s").key(key)]);
    }
    let start = Instant::now();
    while setup.answered().len() < setup.asked {
        setup.settle().await;
    }
    assert!(start.elapsed() >= 7 * TIMEOUT, "{:?}", start.elapsed());
    let answers = setup.answers.lock().expect("no panic");
    let failed = answers.iter().filter(|(_, answer)| answer.is_err());
    assert_eq!(failed.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn under_lasting_overload_requests_fail_after_one_timeout() {
    // 25,600 requests a second, and 1.5 times as many are made.
    let mut setup = slow(TIMEOUT / 20);
    let start = Instant::now();
    let (mut asked, mut key) = (Vec::new(), 0);
    let mut slowest = [Duration::ZERO; 6];
    let mut failed = [0; 6];
    let mut seen = 0;
    while start.elapsed() < 60 * TIMEOUT {
        for _ in 0..39 {
            key += 1;
            asked.push(Instant::now());
            setup.ask([QUOTA.scope("s").key(key)]);
        }
        setup.settle().await;
        let answers = setup.answers.lock().expect("no panic");
        for (number, answer) in &answers[seen..] {
            let at = (asked[*number] - start).as_millis() as usize / 1_000;
            slowest[at] = slowest[at].max(asked[*number].elapsed());
            failed[at] += usize::from(answer.is_err());
        }
        seen = answers.len();
    }
    println!("{slowest:?}, {failed:?}");
    // Not more than Redis is too slow for.
    assert!(
        failed.iter().sum::<usize>() <= asked.len() * 2 / 5,
        "{failed:?}"
    );
    assert!(failed[5] > 0);
    // The first second may be a burst. From then on a request is queued for one timeout.
    assert!(slowest.iter().all(|slowest| *slowest <= 11 * TIMEOUT));
    let lasting = &slowest[3..];
    assert!(
        lasting.iter().all(|slowest| *slowest <= TIMEOUT * 3 / 2),
        "{slowest:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn full_queue_fails_requests_but_accepts_returned_tokens() {
    let mut setup = Setup::new(ScriptedRedis::new(0));
    setup.ask([QUOTA.scope("a")]);
    setup.settle().await;
    for _ in 0..MAX_QUEUED + 5 {
        setup.give_back(&QUOTA.scope("a"), 1.0);
    }
    setup.ask([QUOTA.scope("a")]);
    let answers = setup.answers.lock().expect("no panic").clone();
    assert_eq!(answers, [(1, Err(FailureKind::Overloaded))]);
}

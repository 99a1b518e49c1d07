//! Several calls in flight.

use std::{sync::atomic::Ordering, time::Duration};

use super::support::{QUOTA, ScriptedRedis, Setup};

/// The most buckets of one call.
const FULL: usize = 128;

impl Setup {
    async fn answer(&self, calls: usize) {
        self.redis.answers.add_permits(calls);
        self.settle().await;
    }

    fn sizes(&self) -> Vec<usize> {
        let calls = self.redis.calls();
        calls.iter().map(|call| call.keys.len()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn up_to_eight_full_calls_are_in_flight() {
    // The first reply comes at once: Redis is near.
    let mut setup = Setup::new(ScriptedRedis::new(1));
    for key in 0..20 * FULL {
        setup.ask([QUOTA.scope("s").key(key)]);
    }
    setup.settle().await;
    // Each reply allows one more.
    for answered in 1..12 {
        let sent = answered + 8.min(answered + 1);
        assert_eq!(setup.sizes(), vec![FULL; sent]);
        assert_eq!(setup.answered().len(), answered * FULL);
        setup.answer(1).await;
    }
    setup.answer(20).await;
    let answered = setup.answered();
    assert!(answered.is_sorted(), "calls are answered in their order");
    assert_eq!(answered.len(), setup.asked);
}

#[tokio::test(start_paused = true)]
async fn commands_wait_for_the_call_in_flight_once_there_is_more_to_do() {
    let mut setup = Setup::new(ScriptedRedis::new(10));
    for _ in 0..11 {
        setup.ask([QUOTA.scope("a")]);
        setup.settle().await;
    }
    // The calls so far were of one command each.
    for _ in 0..5 {
        setup.ask([QUOTA.scope("a")]);
    }
    setup.settle().await;
    assert_eq!(setup.redis.calls().len(), 12);
    for _ in 0..1_000 {
        setup.ask([QUOTA.scope("a")]);
    }
    setup.settle().await;
    assert_eq!(setup.redis.calls().len(), 12);
    setup.answer(3).await;
    assert_eq!(setup.redis.calls().len(), 13);
    assert_eq!(setup.answered().len(), setup.asked);
}

#[tokio::test(start_paused = true)]
async fn far_from_redis_commands_do_not_wait_for_the_calls_in_flight() {
    let mut setup = Setup::new(ScriptedRedis {
        takes: Duration::from_millis(1),
        ..ScriptedRedis::new(10)
    });
    let ask = async |setup: &mut Setup| {
        let key = setup.asked;
        setup.ask([QUOTA.scope("s").key(key)]);
        setup.settle().await;
        setup.settle().await;
    };
    for _ in 0..10 {
        ask(&mut setup).await;
    }
    for _ in 0..1 + 1 + 2 + 3 + 4 {
        ask(&mut setup).await;
    }
    assert_eq!(setup.sizes()[10..], [1, 1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn failed_call_fails_what_is_queued_and_not_what_is_in_flight() {
    let mut setup = Setup::new(ScriptedRedis::new(2));
    for key in 0..10 * FULL {
        setup.ask([QUOTA.scope("s").key(key)]);
    }
    setup.settle().await;
    assert_eq!(setup.redis.calls().len(), 2 + 3);
    setup.redis.cuts.store(true, Ordering::Relaxed);
    setup.answer(1).await;
    setup.redis.cuts.store(false, Ordering::Relaxed);
    assert_eq!(setup.answered().len(), 8 * FULL);
    setup.answer(2).await;
    let answers = setup.answers.lock().expect("no panic").clone();
    assert_eq!(answers.len(), setup.asked);
    let granted = answers.iter().filter(|(_, answer)| answer.is_ok());
    assert_eq!(granted.count(), 4 * FULL);
}

use super::*;
use crate::quota::Quota;

const MS: Duration = Duration::from_millis(1);

fn scope() -> (Scope, BucketId, BucketParams) {
    let scope = Quota::per_second(1e6).burst(10_000.0).scope("hot");
    let id = scope.id(&[0; 32]);
    (scope, id, BucketParams::new(10_000.0, 1e6))
}

/// Leases that have measured the demand on the bucket, and their request.
async fn asked(largest: f64, demand: (f64, f64)) -> (Arc<Leases>, Option<LeaseRequest>) {
    let (scope, id, params) = scope();
    let leases = Arc::new(Leases::new(largest, 10, AHEAD));
    let first = leases.ask(&scope, &id, params, (0.0, 0.0));
    assert!(first.is_none(), "the demand is not measured yet");
    tokio::time::advance(MS).await;
    let asked = leases.ask(&scope, &id, params, demand);
    (leases, asked)
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_sized_by_demand_up_to_a_part_of_the_capacity() {
    for (largest, tokens, callers, expected) in [
        // The demand of two milliseconds.
        (1_000.0, 100.0, 100.0, Some(200.0)),
        (150.0, 100.0, 100.0, Some(150.0)),
        (1e9, 10_000.0, 100.0, Some(1_250.0)),
        // One request in two milliseconds is not hot, whatever it costs.
        (1_000.0, 0.5, 0.5, None),
        (1_000.0, 500.0, 0.5, None),
        (0.0, 100.0, 100.0, None),
    ] {
        let (_, asked) = asked(largest, (tokens, callers)).await;
        let wants = asked.map(|asked| asked.tokens);
        assert_eq!(wants, expected, "{largest} {tokens} {callers}");
    }
}

#[tokio::test(start_paused = true)]
async fn slow_calls_enlarge_a_lease() {
    let (scope, id, params) = scope();
    let (leases, asked) = asked(1e9, (100.0, 100.0)).await;
    let sent = Instant::now();
    tokio::time::advance(5 * MS).await;
    asked.expect("hot").answer(200.0, 500.0, sent);
    // The same demand, for two milliseconds and two calls.
    let asked = leases.ask(&scope, &id, params, (500.0, 500.0));
    assert_eq!(asked.expect("hot").tokens, 1_200.0 - 200.0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_half_used_requests_more_once() {
    let (_, id, params) = scope();
    let (leases, asked) = asked(10.0, (100.0, 100.0)).await;
    let take = |params, cost| leases.take(&id.lookup(), params, cost);
    assert_eq!(take(params, 1.0), None);
    asked.expect("hot").answer(10.0, 500.0, Instant::now());
    let other = BucketParams::new(10_000.0, 1.0);
    assert_eq!(take(other, 1.0), None, "another quota");
    assert_eq!(take(params, 11.0), None, "more than there is");
    let taken: Vec<_> = (0..12).map(|_| take(params, 1.0)).collect();
    let asks: Vec<_> = taken.iter().flatten().map(|leased| leased.more).collect();
    assert_eq!(
        asks,
        [
            false, false, false, false, false, true, false, false, false, false
        ]
    );
    assert_eq!(taken[0].map(|leased| leased.level), Some(509.0));
    assert_eq!(taken[10..], [None; 2]);
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_request_is_repeated_and_one_for_scarce_tokens_later() {
    let (scope, id, params) = scope();
    let (leases, first) = asked(10.0, (100.0, 100.0)).await;
    let ask = || leases.ask(&scope, &id, params, (0.0, 0.0));
    assert!(ask().is_none(), "more is requested already");
    drop(first);
    let second = ask().expect("no request is in flight");
    second.answer(4.0, 500.0, Instant::now());
    assert!(ask().is_none(), "the bucket has no tokens to spare");
    tokio::time::advance(AHEAD).await;
    leases
        .ask(&scope, &id, params, (100.0, 100.0))
        .expect("hot")
        .answer(6.0, 0.0, Instant::now());
}

#[tokio::test(start_paused = true)]
async fn unused_tokens_are_reclaimed() {
    let (scope, id, params) = scope();
    let (leases, asked) = asked(10.0, (100.0, 100.0)).await;
    assert!(leases.reclaim_idle().is_empty());
    assert!(!leases.is_empty(), "a request is in flight");
    asked.expect("hot").answer(10.0, 500.0, Instant::now());
    for _ in 0..3 {
        leases.take(&id.lookup(), params, 1.0).expect("leased");
    }
    // As many as were used since the last call are kept.
    assert_eq!(leases.reclaim_idle(), [(scope.clone(), 4.0)]);
    assert_eq!(leases.reclaim_idle(), [(scope, 3.0)]);
    assert_eq!(leases.take(&id.lookup(), params, 1.0), None);
    leases.reclaim_idle();
    assert!(leases.is_empty());
    assert!(leases.drain().is_empty());
}

/// They were leased before the bucket was paused, or its level capped.
#[tokio::test(start_paused = true)]
async fn tokens_requested_before_a_pause_are_not_used() {
    let (scope, id, params) = scope();
    let (leases, asked) = asked(10.0, (100.0, 100.0)).await;
    let sent = Instant::now();
    tokio::time::advance(MS).await;
    leases.forget(&id);
    asked.expect("hot").answer(10.0, 500.0, sent);
    assert_eq!(leases.take(&id.lookup(), params, 1.0), None);
    // Tokens requested after that are.
    tokio::time::advance(MS).await;
    let asked = leases.ask(&scope, &id, params, (100.0, 100.0));
    asked.expect("hot").answer(10.0, 500.0, Instant::now());
    assert!(leases.take(&id.lookup(), params, 1.0).is_some());
}

#[tokio::test(start_paused = true)]
async fn leases_are_bounded() {
    let leases = Arc::new(Leases::new(10.0, 3, AHEAD));
    for key in 0..10 {
        let scope = scope().0.key(key);
        let (id, params) = (scope.id(&[0; 32]), scope.quota());
        let params = BucketParams::new(params.capacity(), params.rate());
        assert!(leases.ask(&scope, &id, params, (5.0, 5.0)).is_none());
    }
    assert_eq!(leases.leases.len(), 3);
}

/// After a burst of keys that are not requested again.
#[tokio::test(start_paused = true)]
async fn reclaimed_leases_free_their_memory() {
    let leases = Arc::new(Leases::new(10.0, 1_000_000, AHEAD));
    for key in 0..100_000 {
        let scope = scope().0.key(key);
        let (id, params) = (scope.id(&[0; 32]), scope.quota());
        let params = BucketParams::new(params.capacity(), params.rate());
        leases.ask(&scope, &id, params, (1.0, 1.0));
    }
    let before = leases.leases.capacity();
    let each = std::mem::size_of::<Lease>();
    println!("{before} of {each} bytes each");
    leases.reclaim_idle();
    leases.reclaim_idle();
    assert!(leases.is_empty());
    let left = leases.leases.capacity();
    assert!(left < before / 100, "{left}");
}

//! Plans that once violated a rule, as small as possible, and cases of missing processes.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    faults,
    invariants::violations,
    plan::{Data, Fault, Kind, Limit, Plan, Role},
    run::{Trace, run},
    server::Server,
    store::Store,
    windows::{admitted, excess},
};
use crate::{
    limiter::{Limiter, LimiterBuilder},
    quota::Quota,
    telemetry::Health,
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn plan(processes: usize, roles: Vec<Role>, faults: &[(u64, u64, usize, Kind)]) -> Plan {
    let fault = |(at, lasts, affected, kind): &(u64, u64, usize, Kind)| Fault {
        at: ms(*at),
        lasts: ms(*lasts),
        affected: *affected,
        kind: *kind,
    };
    let faults: Vec<_> = faults.iter().map(fault).collect();
    let last = faults.iter().map(|fault| fault.at + fault.lasts).max();
    Plan {
        seed: 1,
        processes,
        hinted: true,
        delay: (0, 2),
        limits: vec![Limit {
            capacity: 8.0,
            rate: 16.0,
            strict: false,
        }],
        roles,
        busy: processes,
        faults,
        lull: Duration::ZERO,
        length: last.unwrap_or_default() + ms(9_000),
        lease: 0.0,
        reserve_for: ms(5_000),
    }
}

fn check(plan: &Plan) -> Trace {
    let trace = run(plan);
    let wrong = violations(plan, &trace);
    assert!(wrong.is_empty(), "{plan}{wrong:#?}");
    trace
}

const TRIES: Role = Role::Tries(0, 1.0);

/// Redis starts after the processes, and stops before all have counted each other: they have
/// counted one, two and three processes.
#[test]
fn without_a_complete_count_of_peers_replicas_is_used() {
    let down = Kind::Down(Data::Kept);
    check(&plan(
        3,
        vec![TRIES],
        &[(0, 482, 3, down), (827, 18_196, 3, down)],
    ));
}

/// The same after an outage that is longer than counts are kept: the first process to recover
/// counts no other, because Redis has lost its data.
#[test]
fn counts_do_not_age_in_an_outage() {
    let down = Kind::Down(Data::Lost);
    let faults = [(4_000, 70_000, 3, down), (74_600, 18_000, 3, down)];
    check(&plan(3, vec![TRIES], &faults));
}

/// Redis recovers, gets the debt of memory's reservations, and loses its data before the first
/// request: the charge is not lost.
#[test]
fn write_back_survives_a_later_loss_of_data() {
    let faults = [
        (2_216, 527, 1, Kind::Down(Data::Lost)),
        (8_839, 7_067, 1, Kind::Partitioned),
        (16_290, 0, 1, Kind::Flushed),
    ];
    let mut plan = plan(
        1,
        vec![Role::Cancels(1, 1.0, 1_186), Role::Both(904)],
        &faults,
    );
    let limit = |capacity, strict| Limit {
        capacity,
        rate: 4.0,
        strict,
    };
    plan.limits = vec![limit(2.0, true), limit(8.0, false)];
    plan.seed = 1_295;
    plan.delay = (3, 8);
    check(&plan);
}

/// Two processes are partitioned before their first heartbeat to a Redis that has lost its data: it
/// does not count them as missing.
#[test]
fn peers_without_a_record_in_an_empty_redis_are_expected() {
    let faults = [
        (5_291, 128, 5, Kind::Down(Data::Lost)),
        (5_420, 30_000, 2, Kind::HalfOpen),
    ];
    let mut plan = plan(5, vec![TRIES], &faults);
    // All are established.
    for fault in &mut plan.faults {
        fault.at += ms(2_000);
    }
    for seconds in [5, 60] {
        plan.reserve_for = ms(1_000 * seconds);
        check(&plan);
    }
}

/// The first process to recover capped the bucket at its share, and the others charged their debt
/// as well: no tokens were left for two seconds.
#[test]
fn first_to_recover_does_not_cap_the_bucket_at_its_share() {
    let faults = [(6_000, 5_000, 5, Kind::Down(Data::Kept))];
    let mut plan = plan(5, vec![TRIES], &faults);
    plan.limits[0].capacity = 64.0;
    for seed in 0..8 {
        plan.seed = seed;
        check(&plan);
    }
}

/// Write-backs are executed, and the replies are just too late: repeated, they charge nothing.
#[test]
fn unconfirmed_write_back_is_charged_once() {
    let mut plan = plan(3, vec![TRIES], &[(5_000, 8_000, 3, Kind::Slow(40))]);
    let mut again = 0;
    for seed in 0..12 {
        plan.seed = seed;
        again += check(&plan).repeated_write_backs;
    }
    assert!(again > 0, "no reply to a write-back was too late");
}

/// Heartbeats in flight when Redis froze are executed when it resumes, long after their senders gave
/// up: the first process to recover must not count the others as recovered.
#[test]
fn late_heartbeats_do_not_count() {
    let mut worst = f64::NEG_INFINITY;
    for seed in 0..6 {
        let mut plan = plan(5, vec![TRIES], &[(6_000, 2_500, 5, Kind::Frozen)]);
        // All started at once, with a heartbeat every 1,004 ms or so.
        plan.faults[0].at += ms(4 * seed);
        plan.limits[0].rate = 64.0;
        plan.limits[0].capacity = 64.0;
        plan.seed = seed;
        let trace = check(&plan);
        let excess = excess(&admitted(&trace, 0), (64.0, 64.0), 0.0, 60.0);
        worst = worst.max(excess);
    }
    println!("{worst:.1} tokens over the limit at worst");
    assert!(worst <= 5.0, "{worst} tokens over the limit");
}

/// A connected limiter of this process.
async fn started(server: &Server, process: usize, builder: LimiterBuilder) -> Limiter {
    let limiter = builder.connected_by(server.connector(process), server.lock().rng.next());
    let _ = limiter
        .bucket(&Quota::per_second(1.0).scope("any"))
        .level()
        .await;
    limiter
}

/// Stops without deregistering.
fn crash(server: &Server, process: usize, limiter: Limiter) {
    faults::drop_silently(server, process);
    drop(limiter);
}

/// Two limiters, of which the second crashes after ten seconds. Returns the first, once it counts
/// the second as missing.
async fn remaining(server: &Server) -> Limiter {
    tokio::spawn(server.clone().run());
    let first = started(server, 0, Limiter::builder()).await;
    let second = started(server, 1, Limiter::builder()).await;
    sleep(ms(10_000)).await;
    crash(server, 1, second);
    sleep(ms(4_500)).await;
    first
}

/// The largest part that is reserved within so many seconds, and for how many seconds a part is.
async fn reserved(limiter: &Limiter, seconds: u64) -> (f64, f64) {
    let (mut most, mut lasts) = (0.0f64, 0.0);
    for _ in 0..10 * seconds {
        sleep(ms(100)).await;
        most = most.max(limiter.reserved());
        lasts += if limiter.reserved() > 0.0 { 0.1 } else { 0.0 };
    }
    (most, lasts)
}

#[tokio::test(start_paused = true)]
async fn share_of_a_missing_process_is_reserved_for_the_set_time() {
    for seconds in [0u64, 5, 60] {
        let server = Server::new(2, (0, 1), seconds);
        tokio::spawn(server.clone().run());
        let builder = || Limiter::builder().reserve_for(ms(1_000 * seconds));
        let limiter = started(&server, 0, builder()).await;
        let other = started(&server, 1, builder()).await;
        assert_eq!(reserved(&limiter, 10).await, (0.0, 0.0));
        crash(&server, 1, other);
        let (most, lasts) = reserved(&limiter, 100).await;
        println!("{most} for {lasts:.1} s of {seconds}");
        let expected = if seconds > 0 { 0.5 } else { 0.0 };
        assert_eq!(most, expected);
        // Exact up to one heartbeat.
        assert!((lasts - seconds as f64).abs() < 1.2, "{lasts} of {seconds}");
        assert_eq!(limiter.health(), Health::Redis);
    }
}

#[tokio::test(start_paused = true)]
async fn processes_that_end_within_seconds_are_not_reserved_for() {
    let server = Server::new(16, (0, 1), 1);
    tokio::spawn(server.clone().run());
    let limiter = started(&server, 0, Limiter::builder()).await;
    for process in 1..16 {
        let other = started(&server, process, Limiter::builder()).await;
        sleep(ms(200 * process as u64)).await;
        crash(&server, process, other);
    }
    assert_eq!(reserved(&limiter, 30).await, (0.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn remaining_process_keeps_a_quarter_of_the_rate() {
    let server = Server::new(10, (0, 1), 1);
    tokio::spawn(server.clone().run());
    let limiter = started(&server, 0, Limiter::builder()).await;
    let mut others = Vec::new();
    for process in 1..10 {
        others.push(started(&server, process, Limiter::builder()).await);
    }
    sleep(ms(10_000)).await;
    for (process, other) in others.into_iter().enumerate() {
        crash(&server, process + 1, other);
    }
    let (most, lasts) = reserved(&limiter, 30).await;
    assert_eq!(most, 0.75);
    assert!(lasts < 6.2, "{lasts}");
}

#[tokio::test(start_paused = true)]
async fn instance_replaces_its_predecessor_at_once() {
    for restarts in [1, 5] {
        let server = Server::new(7, (0, 1), 1);
        tokio::spawn(server.clone().run());
        let builder = || Limiter::builder().reserve_for(ms(60_000));
        let limiter = started(&server, 0, builder()).await;
        let pod = || builder().instance("pod-0");
        let mut process = 1;
        let mut other = started(&server, process, pod()).await;
        for _ in 0..restarts {
            sleep(ms(10_000)).await;
            crash(&server, process, other);
            process += 1;
            // Also once it counts as missing.
            sleep(ms(5_500)).await;
            assert_eq!(limiter.reserved(), 0.5);
            other = started(&server, process, pod()).await;
            sleep(ms(1_100)).await;
            assert_eq!(limiter.reserved(), 0.0, "restart {process}");
        }
        assert_eq!(reserved(&limiter, 30).await, (0.0, 0.0));
        drop(other);
    }
}

/// Two limiters that are alive at once under one name count as two.
#[tokio::test(start_paused = true)]
async fn instances_of_one_name_are_both_counted() {
    let server = Server::new(3, (0, 1), 1);
    tokio::spawn(server.clone().run());
    let pod = || Limiter::builder().instance("pod-0");
    let limiters = [
        started(&server, 0, Limiter::builder()).await,
        started(&server, 1, pod()).await,
        started(&server, 2, pod()).await,
    ];
    sleep(ms(1_100)).await;
    assert_eq!(server.lock().store.limiters.len(), 3);
    sleep(ms(10_000)).await;
    assert_eq!(limiters[0].reserved(), 0.0);
    let [first, .., last] = limiters;
    crash(&server, 2, last);
    let (most, _) = reserved(&first, 10).await;
    assert_eq!(most, 1.0 - 2.0 / 3.0);
}

/// Limiters that deregistered within the last minute are not expected after Redis has lost its data.
#[tokio::test(start_paused = true)]
async fn deregistered_limiters_are_not_expected_after_a_flush() {
    let server = Server::new(4, (0, 1), 1);
    tokio::spawn(server.clone().run());
    let mut limiters = Vec::new();
    for process in 0..4 {
        limiters.push(started(&server, process, Limiter::builder()).await);
    }
    sleep(ms(10_000)).await;
    limiters.truncate(1);
    sleep(ms(3_000)).await;
    assert_eq!(server.lock().store.limiters.len(), 1);
    server.lock().store = Store::default();
    sleep(ms(5_000)).await;
    assert_eq!(limiters[0].health(), Health::Redis);
    assert_eq!(limiters[0].reserved(), 0.0);
}

/// Heartbeats report the first pause to the peers, so it is announced without a delay.
#[tokio::test(start_paused = true)]
async fn first_pause_is_announced_at_once() {
    let server = Server::new(1, (0, 1), 1);
    tokio::spawn(server.clone().run());
    let limiter = started(&server, 0, Limiter::builder()).await;
    sleep(ms(10_500)).await;
    assert_eq!(server.lock().store.pauses_until, 0.0);
    limiter
        .bucket(&Quota::per_second(1.0).scope("any"))
        .pause(ms(1_000));
    sleep(ms(10)).await;
    assert!(server.lock().store.pauses_until > 0.0);
}

/// The server's clock is set ahead by more than a heartbeat may be late: the next heartbeat counts
/// all limiters again.
#[tokio::test(start_paused = true)]
async fn heartbeats_count_after_the_clock_is_set() {
    let server = Server::new(2, (0, 1), 1);
    tokio::spawn(server.clone().run());
    let _first = started(&server, 0, Limiter::builder()).await;
    let _second = started(&server, 1, Limiter::builder()).await;
    sleep(ms(10_000)).await;
    for step in [3.6e9, -3.6e9] {
        server.lock().clock_step += step;
        let before = server.lock().store.limiters.clone();
        sleep(ms(1_100)).await;
        let after = server.lock().store.limiters.clone();
        assert_eq!(after.len(), 2);
        for (name, at) in after {
            assert!((at - before[&name] - step / 1e3).abs() < 3_000.0, "{at}");
        }
    }
}

/// A reservation for a missing process ends after some seconds, so waits are not much longer than
/// without it, however slow the limit.
#[tokio::test(start_paused = true)]
async fn waits_are_bounded_while_a_missing_process_is_reserved_for() {
    const DAY: Duration = Duration::from_secs(86_400);
    const RESERVED: Duration = Duration::from_secs(5);
    let limiter = remaining(&Server::new(2, (0, 0), 1)).await;
    let daily = Quota::per_day(1.0).scope("daily");
    limiter.try_acquire(&daily).await.expect("full");
    for max_wait in [Duration::ZERO, ms(1_000)] {
        let rejected = limiter.acquire(&daily, max_wait).await.expect_err("empty");
        let retry_after = rejected.retry_after().expect("when to come back");
        println!("{retry_after:?} of {max_wait:?}");
        assert!(retry_after + max_wait <= DAY + RESERVED, "{retry_after:?}");
        assert!(retry_after + max_wait >= DAY - RESERVED, "{retry_after:?}");
    }
    // A caller that waits for so long is admitted.
    let start = Instant::now();
    let several = [
        daily.clone(),
        Quota::per_day(5.0).scope("several").cost(2.0),
    ];
    limiter
        .acquire(several, DAY + RESERVED)
        .await
        .expect("a wait that fits");
    assert!(start.elapsed() <= DAY + RESERVED, "{:?}", start.elapsed());
    // Reservations that are due while the part is reserved wait at the reduced rate.
    let limiter = remaining(&Server::new(2, (0, 0), 1)).await;
    let quick = Quota::per_second(10.0).burst(1.0).scope("quick");
    let start = Instant::now();
    for _ in 0..6 {
        limiter
            .acquire(&quick, 2 * RESERVED)
            .await
            .expect("a reservation");
    }
    let took = start.elapsed();
    assert!((ms(999)..ms(1_050)).contains(&took), "{took:?}");
}

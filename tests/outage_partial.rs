//! One of four limiters cannot reach Redis: the others reserve its part of the rate, and together
//! they keep the limit.
#![cfg(feature = "redis")]

mod support;
#[path = "support/watch.rs"]
mod watch;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use support::{Proxy, RedisServer};
use tokio::time::{Instant, sleep};
use tower_throttle::{Limiter, Quota, Scope};
use watch::{until_level, until_recovered};

const SECOND: Duration = Duration::from_secs(1);
const CAP: f64 = 20.0;
const RATE: f64 = 100.0;
const API: Scope = Quota::per_second(RATE).burst(CAP).scope("api");

/// Admissions: the time, and the index of the limiter.
type Admissions = Arc<Mutex<Vec<(Instant, usize)>>>;

/// Acquires in a loop, and waits for each reservation.
async fn caller(limiter: Limiter, of: usize, admissions: Admissions, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        if limiter.acquire(API, SECOND / 5).await.is_ok() {
            let admission = (Instant::now(), of);
            admissions.lock().expect("no panic").push(admission);
        } else {
            sleep(SECOND / 50).await;
        }
    }
}

fn admitted(
    admissions: &Admissions,
    from: Instant,
    to: Instant,
    of: impl Fn(usize) -> bool,
) -> f64 {
    let admissions = admissions.lock().expect("no panic");
    let those = admissions
        .iter()
        .filter(|(at, who)| (from..to).contains(at) && of(*who));
    those.count() as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn reachable_peers_reserve_partitioned_share() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let limiters: Vec<_> = (0..4)
        .map(|n| {
            let url = if n == 3 { proxy.url() } else { server.url() };
            Limiter::builder()
                .redis(url)
                .redis_timeout(SECOND / 4)
                .build()
                .expect("a URL")
        })
        .collect();
    let admissions = Admissions::default();
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for (n, limiter) in limiters.iter().enumerate() {
        // Each limiter must have received the heartbeats of the others before the last one is cut
        // off.
        let _ = limiter.bucket(&API).level().await;
        for _ in 0..8 {
            let (limiter, admissions, stop) = (limiter.clone(), admissions.clone(), stop.clone());
            callers.push(tokio::spawn(caller(limiter, n, admissions, stop)));
        }
    }
    // A limiter must be old enough for the others to reserve for it.
    sleep(13 * SECOND / 2).await;
    let stalled = Instant::now();
    proxy.stall();
    // Its last heartbeat is three seconds old, and the others have sent theirs since.
    let missing = stalled + 9 * SECOND / 2;
    tokio::time::sleep_until(missing).await;
    sleep(3 * SECOND / 2).await;
    let healed = Instant::now();
    proxy.pass();
    until_recovered(&limiters[3]).await;
    // The recovery window, and one heartbeat.
    sleep(5 * SECOND / 2).await;
    let recovered = Instant::now();
    sleep(SECOND).await;
    let end = Instant::now();
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no panic");
    }

    let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
    let allowed = RATE * seconds(missing, healed);
    let others = admitted(&admissions, missing, healed, |who| who != 3);
    let alone = admitted(&admissions, missing, healed, |who| who == 3);
    println!(
        "partitioned: {:.2} and {:.2}",
        others / allowed,
        alone / allowed
    );
    // Three quarters for the others and one for it. At most a tenth is lost in requests in flight.
    assert!(others <= 0.75 * allowed + CAP, "{others} of {allowed}");
    assert!(
        alone <= 0.25 * allowed + CAP / 4.0 + 1.0,
        "{alone} of {allowed}"
    );
    assert!(others >= 0.6 * allowed, "{others} of {allowed}");
    assert!(alone >= 0.18 * allowed, "{alone} of {allowed}");

    // Until the heartbeat is missing, all four limiters keep their local shares. The documented
    // bound of an outage applies: one of four limiters, and a heartbeat that is checked every
    // second and missing after three.
    let outage = seconds(stalled, healed);
    let all = admitted(&admissions, stalled, healed, |_| true);
    let excess = all - CAP - RATE * outage;
    println!("excess during the outage: {excess}");
    assert!(excess <= 0.75 * CAP + 0.25 * RATE * 4.0, "{excess}");

    // Afterwards there is one bucket again.
    let allowed = RATE * seconds(recovered, end);
    let all = admitted(&admissions, recovered, end, |_| true);
    println!("after: {:.2}", all / allowed);
    assert!(all <= allowed + CAP, "{all} of {allowed}");
    assert!(all >= 0.85 * allowed, "{all} of {allowed}");
    until_level(&limiters[3], &API, CAP).await;
}

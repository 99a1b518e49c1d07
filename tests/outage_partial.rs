//! One of four limiters cannot reach Redis: the others leave room for it, and together they hold
//! the limit.
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
use watch::{until_back, until_level};

const SECOND: Duration = Duration::from_secs(1);
const CAP: f64 = 20.0;
const RATE: f64 = 100.0;
const API: Scope = Quota::per_second(RATE).burst(CAP).scope("api");

/// When somebody was admitted, and by which limiter.
type Admissions = Arc<Mutex<Vec<(Instant, usize)>>>;

/// Asks for ever, waiting for its turn.
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
async fn the_others_leave_room_for_it() {
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
        // The last one must have heard of the others when it is cut off.
        let _ = limiter.bucket(&API).level().await;
        for _ in 0..8 {
            let (limiter, admissions, stop) = (limiter.clone(), admissions.clone(), stop.clone());
            callers.push(tokio::spawn(caller(limiter, n, admissions, stop)));
        }
    }
    // And must have lived for long enough to be missed.
    sleep(13 * SECOND / 2).await;
    let stalled = Instant::now();
    proxy.stall();
    // Its last beat is three seconds old, and the others have beaten since.
    let lapsed = stalled + 9 * SECOND / 2;
    tokio::time::sleep_until(lapsed).await;
    sleep(3 * SECOND / 2).await;
    let healed = Instant::now();
    proxy.pass();
    until_back(&limiters[3]).await;
    // The grace, and a beat.
    sleep(5 * SECOND / 2).await;
    let whole = Instant::now();
    sleep(SECOND).await;
    let end = Instant::now();
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no panic");
    }

    let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
    let spell = RATE * seconds(lapsed, healed);
    let others = admitted(&admissions, lapsed, healed, |who| who != 3);
    let alone = admitted(&admissions, lapsed, healed, |who| who == 3);
    println!("cut off: {:.2} and {:.2}", others / spell, alone / spell);
    // Three quarters and one, and not much less: what waits on its way is a tenth at most.
    assert!(others <= 0.75 * spell + CAP, "{others} of {spell}");
    assert!(
        alone <= 0.25 * spell + CAP / 4.0 + 1.0,
        "{alone} of {spell}"
    );
    assert!(others >= 0.6 * spell, "{others} of {spell}");
    assert!(alone >= 0.18 * spell, "{alone} of {spell}");

    // Before the beat is missed, both hold what they held: the stated bound of an outage, for one
    // of four and a beat that is looked for every second and missed after three.
    let outage = seconds(stalled, healed);
    let all = admitted(&admissions, stalled, healed, |_| true);
    let excess = all - CAP - RATE * outage;
    println!("in excess in the outage: {excess}");
    assert!(excess <= 0.75 * CAP + 0.25 * RATE * 4.0, "{excess}");

    // After that it is one bucket again.
    let spell = RATE * seconds(whole, end);
    let all = admitted(&admissions, whole, end, |_| true);
    println!("after: {:.2}", all / spell);
    assert!(all <= spell + CAP, "{all} of {spell}");
    assert!(all >= 0.85 * spell, "{all} of {spell}");
    until_level(&limiters[3], &API, CAP).await;
}

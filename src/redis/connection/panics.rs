//! Tests of a limiter whose background tasks panic, or whose Redis sends malformed replies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    FailureKind, Health, Limiter, Quota, Scope,
    decision::Failure,
    redis::{
        connection::{
            driver::RedisTransport,
            transport::{Session, Transport},
        },
        script::{ACQUIRE, Script},
    },
    verification::parity::support::RedisServer,
};

const API: Scope = Quota::per_day(1.0).burst(1e6).scope("api");

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Real connections that panic on demand.
struct Fragile {
    driver: RedisTransport,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    connect: AtomicBool,
    run: AtomicBool,
    /// Replies to requests lack their last byte.
    truncate: AtomicBool,
    panics: AtomicUsize,
}

impl Faults {
    fn panic_if(&self, what: &AtomicBool) {
        if what.load(Ordering::Relaxed) {
            self.panics.fetch_add(1, Ordering::Relaxed);
            panic!("a panic for this test");
        }
    }
}

struct FragileSession {
    session: Box<dyn Session>,
    faults: Arc<Faults>,
}

impl Transport for Fragile {
    fn address(&self) -> String {
        self.driver.address()
    }

    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Session>, Failure>> {
        async {
            self.faults.panic_if(&self.faults.connect);
            let session = self.driver.connect().await?;
            let faults = self.faults.clone();
            Ok(Box::new(FragileSession { session, faults }) as Box<dyn Session>)
        }
        .boxed()
    }
}

impl Session for FragileSession {
    fn run<'a>(
        &'a self,
        script: &'static Script,
        keys: &'a [Vec<u8>],
        arguments: &'a [&'a [u8]],
    ) -> BoxFuture<'a, Result<Vec<u8>, Failure>> {
        self.faults.panic_if(&self.faults.run);
        let run = self.session.run(script, keys, arguments);
        let is_request = std::ptr::eq(script, &ACQUIRE);
        run.map(move |reply| {
            let mut reply = reply?;
            if is_request && self.faults.truncate.load(Ordering::Relaxed) {
                reply.pop();
            }
            Ok(reply)
        })
        .boxed()
    }
}

async fn start() -> (RedisServer, Limiter, Arc<Faults>) {
    let server = RedisServer::start().await;
    let faults = Arc::<Faults>::default();
    let connect = Fragile {
        driver: RedisTransport::new(&server.url(), LONG).expect("a URL"),
        faults: faults.clone(),
    };
    let builder = Limiter::builder().redis_timeout(LONG);
    (server, builder.connected_by(connect, 1), faults)
}

fn reason(limiter: &Limiter) -> Option<FailureKind> {
    match limiter.health() {
        Health::Degraded { reason, .. } => Some(reason),
        _ => None,
    }
}

/// Whether all of some acquisitions were decided by memory. None of them may hang.
async fn some_from_memory(limiter: &Limiter) -> bool {
    let some = join_all((0..20).map(|_| limiter.try_acquire(API)));
    let permits = timeout(LONG / 2, some).await.expect("no acquisition hangs");
    permits
        .into_iter()
        .all(|permit| permit.expect("plenty").is_degraded())
}

async fn until(limiter: &Limiter, what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < LONG / 2, "{:?}", limiter.health());
        some_from_memory(limiter).await;
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_while_connecting_is_an_outage_and_is_retried() {
    let (_server, limiter, faults) = start().await;
    faults.connect.store(true, Ordering::Relaxed);
    assert!(some_from_memory(&limiter).await);
    assert_eq!(reason(&limiter), Some(FailureKind::Panicked));
    until(&limiter, || faults.panics.load(Ordering::Relaxed) >= 3).await;
    assert_eq!(reason(&limiter), Some(FailureKind::Panicked));
    faults.connect.store(false, Ordering::Relaxed);
    until(&limiter, || limiter.health() == Health::Redis).await;
}

/// Both the task that sends requests and the supervisor use the connection.
#[tokio::test(flavor = "multi_thread")]
async fn panic_of_a_connection_is_an_outage_and_reconnects() {
    let (_server, limiter, faults) = start().await;
    until(&limiter, || limiter.health() == Health::Redis).await;
    // The request comes first.
    assert!(!some_from_memory(&limiter).await);
    faults.run.store(true, Ordering::Relaxed);
    assert!(some_from_memory(&limiter).await);
    until(&limiter, || reason(&limiter).is_some()).await;
    assert_eq!(reason(&limiter), Some(FailureKind::Panicked));
    faults.run.store(false, Ordering::Relaxed);
    until(&limiter, || limiter.health() == Health::Redis).await;
    // Without a request, the next heartbeat panics.
    faults.run.store(true, Ordering::Relaxed);
    let mut changes = limiter.health_changes();
    let degraded = changes.wait_for(|health| matches!(health, Health::Degraded { .. }));
    timeout(LONG / 2, degraded)
        .await
        .expect("the heartbeat panics")
        .expect("open");
    faults.run.store(false, Ordering::Relaxed);
    until(&limiter, || limiter.health() == Health::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_of_a_wrong_length_are_an_outage() {
    let (_server, limiter, faults) = start().await;
    until(&limiter, || limiter.health() == Health::Redis).await;
    assert!(!some_from_memory(&limiter).await);
    faults.truncate.store(true, Ordering::Relaxed);
    assert!(some_from_memory(&limiter).await);
    assert_eq!(reason(&limiter), Some(FailureKind::Misconfigured));
    faults.truncate.store(false, Ordering::Relaxed);
    until(&limiter, || limiter.health() == Health::Redis).await;
}

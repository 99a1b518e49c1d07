//! What becomes of a limiter whose background tasks panic, or whose Redis replies nonsense.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use tokio::time::{Instant, sleep, timeout};

use crate::redis::{
    connection::driver::RedisTransport,
    connection::transport::{Session, Transport},
    script::{ACQUIRE, Script},
};
use crate::{
    FailureKind, Health, Limiter, Quota, Scope, decision::Failure,
    verification::parity::support::RedisServer,
};

const API: Scope = Quota::per_day(1.0).burst(1e6).scope("api");

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Real connections; what uses them panics while it is told to.
struct Fragile {
    driver: RedisTransport,
    spoilt: Arc<Spoilt>,
}

#[derive(Default)]
struct Spoilt {
    connect: AtomicBool,
    run: AtomicBool,
    /// Replies to requests lack their end.
    cut: AtomicBool,
    panics: AtomicUsize,
}

impl Spoilt {
    fn panic_if(&self, what: &AtomicBool) {
        if what.load(Ordering::Relaxed) {
            self.panics.fetch_add(1, Ordering::Relaxed);
            panic!("a panic for this test");
        }
    }
}

struct FragileSession {
    session: Box<dyn Session>,
    spoilt: Arc<Spoilt>,
}

impl Transport for Fragile {
    fn address(&self) -> String {
        self.driver.address()
    }

    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Session>, Failure>> {
        async {
            self.spoilt.panic_if(&self.spoilt.connect);
            let session = self.driver.connect().await?;
            let spoilt = self.spoilt.clone();
            Ok(Box::new(FragileSession { session, spoilt }) as Box<dyn Session>)
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
        self.spoilt.panic_if(&self.spoilt.run);
        let run = self.session.run(script, keys, arguments);
        let is_request = std::ptr::eq(script, &ACQUIRE);
        run.map(move |reply| {
            let mut reply = reply?;
            if is_request && self.spoilt.cut.load(Ordering::Relaxed) {
                reply.pop();
            }
            Ok(reply)
        })
        .boxed()
    }
}

async fn start() -> (RedisServer, Limiter, Arc<Spoilt>) {
    let server = RedisServer::start().await;
    let spoilt = Arc::<Spoilt>::default();
    let connect = Fragile {
        driver: RedisTransport::new(&server.url(), LONG).expect("a URL"),
        spoilt: spoilt.clone(),
    };
    let builder = Limiter::builder().redis_timeout(LONG);
    (server, builder.connected_by(connect, 1), spoilt)
}

fn reason(limiter: &Limiter) -> Option<FailureKind> {
    match limiter.health() {
        Health::Degraded { reason, .. } => Some(reason),
        _ => None,
    }
}

/// Nobody hangs: whether all of some were decided by memory.
async fn some_from_memory(limiter: &Limiter) -> bool {
    let some = join_all((0..20).map(|_| limiter.try_acquire(API)));
    let permits = timeout(LONG / 2, some).await.expect("nobody hangs");
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
async fn a_connector_that_panics_is_an_outage_and_is_tried_again() {
    let (_server, limiter, spoilt) = start().await;
    spoilt.connect.store(true, Ordering::Relaxed);
    assert!(some_from_memory(&limiter).await);
    assert_eq!(reason(&limiter), Some(FailureKind::Panicked));
    until(&limiter, || spoilt.panics.load(Ordering::Relaxed) >= 3).await;
    assert_eq!(reason(&limiter), Some(FailureKind::Panicked));
    spoilt.connect.store(false, Ordering::Relaxed);
    until(&limiter, || limiter.health() == Health::Redis).await;
}

/// Both the task that sends requests and the one that beats use the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_panics_is_an_outage_and_is_made_anew() {
    let (_server, limiter, spoilt) = start().await;
    until(&limiter, || limiter.health() == Health::Redis).await;
    // The request comes first.
    assert!(!some_from_memory(&limiter).await);
    spoilt.run.store(true, Ordering::Relaxed);
    assert!(some_from_memory(&limiter).await);
    until(&limiter, || reason(&limiter).is_some()).await;
    assert_eq!(reason(&limiter), Some(FailureKind::Panicked));
    spoilt.run.store(false, Ordering::Relaxed);
    until(&limiter, || limiter.health() == Health::Redis).await;
    // Nobody asks: the next beat meets it.
    spoilt.run.store(true, Ordering::Relaxed);
    let mut changes = limiter.health_changes();
    let degraded = changes.wait_for(|health| matches!(health, Health::Degraded { .. }));
    timeout(LONG / 2, degraded)
        .await
        .expect("the beat panics")
        .expect("open");
    spoilt.run.store(false, Ordering::Relaxed);
    until(&limiter, || limiter.health() == Health::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_of_another_length_are_an_outage() {
    let (_server, limiter, spoilt) = start().await;
    until(&limiter, || limiter.health() == Health::Redis).await;
    assert!(!some_from_memory(&limiter).await);
    spoilt.cut.store(true, Ordering::Relaxed);
    assert!(some_from_memory(&limiter).await);
    assert_eq!(reason(&limiter), Some(FailureKind::Misconfigured));
    spoilt.cut.store(false, Ordering::Relaxed);
    until(&limiter, || limiter.health() == Health::Redis).await;
}

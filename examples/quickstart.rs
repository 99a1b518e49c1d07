//! Shows both sides of a limit, over real sockets, in about three seconds: a server that rejects
//! requests over its limit, and a client that waits for tokens. It counts the requests that each
//! handler receives and compares them with what the limit allows. The exit code is 0 if both limits
//! were kept.
//!
//! Run it in memory, or on Redis:
//!
//! ```text
//! cargo run --example quickstart
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example quickstart
//! ```

use std::{
    net::SocketAddr,
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::ConnectInfo,
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use reqwest::{Client, Method, Request, StatusCode, Url};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, interval},
};
use tower::{ServiceBuilder, ServiceExt};
use tower_throttle::{
    Health, Limiter, Quota, RateLimitLayer, Rejected, Scope,
    extract::{Peer, extension, peer_ip},
};

/// Inbound: a bucket for each authenticated account, together with one for each client address,
/// because an invented API key must not select a new bucket.
const PER_ACCOUNT: Scope = Quota::per_second(20.0)
    .burst(10.0)
    .scope("quickstart:account");
const PER_CLIENT: Scope = Quota::per_second(200.0).scope("quickstart:client");
const UNKNOWN: Scope = Quota::per_second(1.0).scope("quickstart:unknown-client");

/// Outbound: what an upstream accepts from this client.
const UPSTREAM: Scope = Quota::per_second(40.0)
    .burst(20.0)
    .scope("quickstart:upstream");

/// The API key of the only customer.
const KEY: &str = "quickstart";

/// Over loopback a response takes a few milliseconds. A request that takes longer has waited.
const WAITED: Duration = Duration::from_millis(100);

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<ExitCode, Error> {
    let limiter = match std::env::var("REDIS_URL") {
        Ok(url) => Limiter::redis(&url)?,
        Err(_) => Limiter::in_memory(),
    };
    // The first use connects to Redis, so that the line below states whether it is available.
    let _ = limiter.bucket(&UPSTREAM).level().await;
    println!("decides: {}\n", decides(&limiter));

    let (inbound, outbound) = tokio::try_join!(inbound(&limiter), outbound(&limiter))?;

    println!(
        "{:<20}{:>9}{:>10}{:>10}{:>8}{:>9}",
        "", "offered", "admitted", "rejected", "waited", "allowed"
    );
    inbound.print("inbound, rejecting");
    outbound.print("outbound, waiting");

    println!(
        "\ndecides: {}; decisions in degraded mode: {}",
        decides(&limiter),
        limiter.fallbacks()
    );
    // The others on this Redis reserve nothing for this process.
    limiter.deregister().await;
    Ok(if inbound.is_kept() && outbound.is_kept() {
        ExitCode::SUCCESS
    } else {
        println!("more was admitted than the limit allows");
        if limiter.fallbacks() > 0 {
            println!("Redis was unavailable for some time, and memory had a bucket of its own");
        }
        ExitCode::FAILURE
    })
}

/// Names what decides.
fn decides(limiter: &Limiter) -> String {
    match limiter.health() {
        Health::InMemory => "memory; set REDIS_URL to share the limits".to_owned(),
        Health::Redis => "Redis".to_owned(),
        Health::Degraded { reason, .. } => {
            format!("memory, because Redis is unavailable ({reason})")
        }
        other => format!("{other:?}"),
    }
}

/// The account to which the API key of a request belongs.
#[derive(Clone)]
struct Account {
    id: u32,
}

/// Runs before the limits and inserts what they read. It accepts one API key.
async fn identify(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: axum::extract::Request,
    next: Next,
) -> Response {
    let key = request.headers().get("x-api-key");
    let is_valid = key.is_some_and(|key| key == KEY);
    let extensions = request.extensions_mut();
    // With the feature `axum` of this crate, `peer_ip` reads `ConnectInfo` itself.
    extensions.insert(Peer(peer.ip()));
    if is_valid {
        // Each run has a bucket of its own on a shared Redis.
        extensions.insert(Account { id: process::id() });
    }
    next.run(request).await
}

/// Runs a server with two limits, and sends it 200 requests in three seconds, all with one API key.
async fn inbound(limiter: &Limiter) -> Result<Row, Error> {
    let (app, served) = counting_app();
    let limits = (
        PER_CLIENT.by(peer_ip()).or(UNKNOWN),
        PER_ACCOUNT
            .by(extension::<Account>().key(|account| account.id))
            .or_unlimited(),
    );
    let app = app
        .layer(RateLimitLayer::new(limiter, limits).respond_http())
        .layer(from_fn(identify));
    let url = serve(app).await?;
    let client = Client::new();

    let mut row = Row::new(PER_ACCOUNT.quota());
    let mut requests = JoinSet::new();
    let mut pace = interval(Duration::from_millis(15));
    for _ in 0..200 {
        pace.tick().await;
        row.offered += 1;
        let request = client.get(url.clone()).header("x-api-key", KEY).send();
        requests.spawn(async move { Ok::<_, Error>(request.await?.status()) });
    }
    while let Some(status) = requests.join_next().await {
        match status?? {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => row.rejected += 1,
            other => return Err(format!("unexpected status: {other}").into()),
        }
    }
    Ok(row.finish(&served))
}

/// Runs an upstream without a limit, and sends it 140 requests at once through a client with one.
async fn outbound(limiter: &Limiter) -> Result<Row, Error> {
    let (app, served) = counting_app();
    let url = serve(app).await?;
    let client = ServiceBuilder::new()
        .layer(
            RateLimitLayer::new(limiter, UPSTREAM.key(process::id()))
                .max_wait(Duration::from_secs(10)),
        )
        .service(Client::new());

    let mut row = Row::new(UPSTREAM.quota());
    let mut requests = JoinSet::new();
    for _ in 0..140 {
        row.offered += 1;
        let request = Request::new(Method::GET, url.clone());
        let response = client.clone().oneshot(request);
        requests.spawn(async move {
            let started = Instant::now();
            let response = response.await;
            (response, started.elapsed())
        });
    }
    while let Some(request) = requests.join_next().await {
        let (response, elapsed) = request?;
        match response {
            Ok(response) => {
                response.error_for_status()?;
                row.waited += u64::from(elapsed > WAITED);
            }
            Err(error) if Rejected::find(&*error).is_some() => row.rejected += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(row.finish(&served))
}

/// Makes an app that counts the requests that reach its handler.
fn counting_app() -> (Router, Arc<AtomicU64>) {
    let served = Arc::new(AtomicU64::new(0));
    let counter = served.clone();
    let app = Router::new().route(
        "/",
        get(async move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }),
    );
    (app, served)
}

/// Serves `app` on a free loopback port until the process ends.
async fn serve(app: Router) -> Result<Url, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?).parse()?;
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

/// The counts of one side.
struct Row {
    quota: Quota,
    started: Instant,
    offered: u64,
    admitted: u64,
    rejected: u64,
    waited: u64,
    allowed: f64,
}

impl Row {
    /// Starts the clock, before the first request is sent.
    fn new(quota: Quota) -> Self {
        Self {
            quota,
            started: Instant::now(),
            offered: 0,
            admitted: 0,
            rejected: 0,
            waited: 0,
            allowed: 0.0,
        }
    }

    /// Stops the clock, after the last response.
    fn finish(mut self, served: &AtomicU64) -> Self {
        let seconds = self.started.elapsed().as_secs_f64();
        self.allowed = self.quota.capacity() + self.quota.rate() * seconds;
        self.admitted = served.load(Ordering::Relaxed);
        self
    }

    fn is_kept(&self) -> bool {
        self.admitted as f64 <= self.allowed
    }

    fn print(&self, side: &str) {
        println!(
            "{side:<20}{:>9}{:>10}{:>10}{:>8}{:>9.1}",
            self.offered, self.admitted, self.rejected, self.waited, self.allowed
        );
    }
}

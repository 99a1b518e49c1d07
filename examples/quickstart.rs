//! Both sides of a limit, over real sockets, in about three seconds: a server that refuses what
//! is too much, and a client that waits for its turn. Both are counted where requests arrive and
//! held against what the limit allows; the exit code says whether it was kept.
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

/// Inbound: a bucket per account that is authenticated, together with one per client address for
/// everybody, because an invented key must not be a new bucket.
const PER_ACCOUNT: Scope = Quota::per_second(20.0)
    .burst(10.0)
    .scope("quickstart:account");
const PER_CLIENT: Scope = Quota::per_second(200.0).scope("quickstart:client");
const UNKNOWN: Scope = Quota::per_second(1.0).scope("quickstart:unknown-client");

/// Outbound: what an upstream takes from us.
const UPSTREAM: Scope = Quota::per_second(40.0)
    .burst(20.0)
    .scope("quickstart:upstream");

/// The key of the one customer there is.
const KEY: &str = "quickstart";

/// Over loopback an answer takes a few milliseconds; one that took longer had waited.
const WAITED: Duration = Duration::from_millis(100);

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<ExitCode, Error> {
    let limiter = match std::env::var("REDIS_URL") {
        Ok(url) => Limiter::redis(&url)?,
        Err(_) => Limiter::in_memory(),
    };
    // The first use connects; until then nobody knows whether Redis answers.
    let _ = limiter.bucket(&UPSTREAM).level().await;
    println!("store: {}\n", store(&limiter));

    let (inbound, outbound) = tokio::try_join!(inbound(&limiter), outbound(&limiter))?;

    println!(
        "{:<20}{:>9}{:>10}{:>9}{:>8}{:>9}",
        "", "offered", "admitted", "refused", "waited", "allowed"
    );
    inbound.print("inbound, refusing");
    outbound.print("outbound, waiting");

    println!(
        "\nstore: {}; decisions made without it: {}",
        store(&limiter),
        limiter.fallbacks()
    );
    Ok(if inbound.is_kept() && outbound.is_kept() {
        ExitCode::SUCCESS
    } else {
        println!("more was admitted than the limit allows");
        if limiter.fallbacks() > 0 {
            println!("Redis was away for a while, and memory held a bucket of its own");
        }
        ExitCode::FAILURE
    })
}

/// Which store decides, for people.
fn store(limiter: &Limiter) -> String {
    match limiter.health() {
        Health::InMemory => "memory; set REDIS_URL to share the limits".to_owned(),
        Health::Redis => "Redis".to_owned(),
        Health::Degraded { reason, .. } => format!("memory, because Redis is away ({reason})"),
        other => format!("{other:?}"),
    }
}

/// Whose key a request carries.
#[derive(Clone)]
struct Account {
    id: u32,
}

/// Finds who sends a request, before the limits ask. It knows one key.
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
        // Another run on the same Redis is another customer.
        extensions.insert(Account { id: process::id() });
    }
    next.run(request).await
}

/// A server under two limits, and 200 requests to it in three seconds, all with one API key.
async fn inbound(limiter: &Limiter) -> Result<Row, Error> {
    let (app, served) = counting_app();
    let limits = (
        PER_CLIENT.by(peer_ip).or(UNKNOWN),
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
            StatusCode::TOO_MANY_REQUESTS => row.refused += 1,
            other => return Err(format!("unexpected answer: {other}").into()),
        }
    }
    Ok(row.finish(&served))
}

/// An upstream without a limit, and 140 requests at once to it through a client that has one.
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
        let answer = client.clone().oneshot(request);
        requests.spawn(async move {
            let asked = Instant::now();
            let answer = answer.await;
            (answer, asked.elapsed())
        });
    }
    while let Some(request) = requests.join_next().await {
        let (answer, took) = request?;
        match answer {
            Ok(answer) => {
                answer.error_for_status()?;
                row.waited += u64::from(took > WAITED);
            }
            Err(error) if Rejected::find(&*error).is_some() => row.refused += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(row.finish(&served))
}

/// An app that counts the requests that reach its handler.
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

/// Serves `app` on a free port of this machine until the process ends.
async fn serve(app: Router) -> Result<Url, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?).parse()?;
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

/// What happened on one side, and how long it took.
struct Row {
    quota: Quota,
    started: Instant,
    offered: u64,
    admitted: u64,
    refused: u64,
    waited: u64,
    allowed: f64,
}

impl Row {
    /// The clock starts before the first request is sent.
    fn new(quota: Quota) -> Self {
        Self {
            quota,
            started: Instant::now(),
            offered: 0,
            admitted: 0,
            refused: 0,
            waited: 0,
            allowed: 0.0,
        }
    }

    /// It stops when the last answer is there.
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
            "{side:<20}{:>9}{:>10}{:>9}{:>8}{:>9.1}",
            self.offered, self.admitted, self.refused, self.waited, self.allowed
        );
    }
}

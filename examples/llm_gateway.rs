//! Shows a gateway in front of a language model with two limits, requests per minute and tokens per
//! minute, which one acquisition takes together. The cost of a request in tokens is known when its
//! response has been streamed; until then an estimate is charged. A stream that is cancelled is
//! settled, too, but never below the estimate, because its full cost is unknown.
//!
//! The model, the gateway and its clients run in this process, over real sockets, for about five
//! seconds.
//!
//! Run it in memory, or on Redis:
//!
//! ```text
//! cargo run --example llm_gateway
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example llm_gateway
//! ```

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tower_throttle::{Limiter, PermitHandle, Quota, RateLimitLayer, Scope};

const RPM: Scope = Quota::per_minute(1_080.0).burst(10.0).scope("gateway:rpm");
const TPM: Scope = Quota::per_minute(60_000.0)
    .burst(2_000.0)
    .scope("gateway:tpm");

const RUN: Duration = Duration::from_secs(5);
const CLIENTS: usize = 24;
/// One token of the model is four bytes.
const TOKEN: &str = "word";

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let limiter = match std::env::var("REDIS_URL") {
        Ok(url) => Limiter::redis(&url)?,
        Err(_) => Limiter::in_memory(),
    };
    // An earlier run may have left its levels in Redis.
    limiter.bucket(&RPM).reset().await.unwrap();
    limiter.bucket(&TPM).reset().await.unwrap();

    let model = serve(Router::new().route("/", get(model))).await?;
    let gateway = Gateway {
        client: reqwest::Client::new(),
        model,
        total: Arc::default(),
    };
    let limit = RateLimitLayer::new(&limiter, |request: &Request| {
        [RPM, TPM.cost(tokens(request.headers(), "x-max-tokens"))]
    });
    let app = Router::new()
        .route("/", get(complete))
        .layer(limit.respond_http().max_wait(RUN).expose_permit())
        .with_state(gateway.clone());
    let url = serve(app).await?;

    let started = Instant::now();
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(client(n, url.clone(), started + RUN));
    }
    let counts = clients.join_all().await;
    limiter.deregister().await;
    let rejected: usize = counts.iter().map(|(rejected, _)| rejected).sum();
    let cancelled: usize = counts.iter().map(|(_, cancelled)| cancelled).sum();
    println!("{cancelled} streams were cancelled halfway, {rejected} requests were rejected\n");

    let total = gateway.total.lock().map_err(|_| "a handler panicked")?;
    let seconds = total
        .last
        .map_or(0.0, |last| (last - started).as_secs_f64());
    println!(
        "{:<10}{:>10}{:>10}{:>20}",
        "", "admitted", "allowed", "admitted / allowed"
    );
    for (name, scope, admitted) in [
        ("requests", RPM, total.requests),
        ("tokens", TPM, total.tokens),
    ] {
        let quota = scope.quota();
        let allowed = quota.capacity() + quota.rate() * seconds;
        let part = admitted / allowed;
        println!("{name:<10}{admitted:>10.0}{allowed:>10.0}{part:>20.3}");
    }
    println!("\nestimate: {:.0} tokens", total.estimated);
    Ok(())
}

#[derive(Clone)]
struct Gateway {
    client: reqwest::Client,
    model: reqwest::Url,
    total: Arc<Mutex<Total>>,
}

#[derive(Default)]
struct Total {
    requests: f64,
    estimated: f64,
    tokens: f64,
    last: Option<Instant>,
}

/// Sends the request to the model, and streams its response.
async fn complete(
    State(gateway): State<Gateway>,
    Extension(permit): Extension<PermitHandle>,
    headers: HeaderMap,
) -> Response {
    let meter = Meter::new(permit, tokens(&headers, "x-max-tokens"), gateway.total);
    let length = tokens(&headers, "x-length").to_string();
    let request = gateway.client.get(gateway.model).header("x-length", length);
    match request.send().await {
        Ok(response) => {
            let next = async |(mut response, mut meter): (reqwest::Response, Meter)| {
                let chunk = response.chunk().await;
                match &chunk {
                    // A chunk may end within a token.
                    Ok(Some(bytes)) => meter.bytes += bytes.len(),
                    Ok(None) => meter.complete = true,
                    Err(_) => {}
                }
                chunk.transpose().map(|chunk| (chunk, (response, meter)))
            };
            Body::from_stream(stream::unfold((response, meter), next)).into_response()
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

/// Settles the cost when it is dropped with the stream, at its end or when it is cancelled.
struct Meter {
    permit: PermitHandle,
    estimate: f64,
    bytes: usize,
    complete: bool,
    total: Arc<Mutex<Total>>,
}

impl Meter {
    fn new(permit: PermitHandle, estimate: f64, total: Arc<Mutex<Total>>) -> Self {
        if let Ok(mut total) = total.lock() {
            total.requests += 1.0;
            total.estimated += estimate;
            total.last = Some(Instant::now());
        }
        Self {
            permit,
            estimate,
            bytes: 0,
            complete: false,
            total,
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let sent = self.bytes.div_ceil(TOKEN.len()) as f64;
        let actual = match self.complete {
            true => sent,
            false => sent.max(self.estimate),
        };
        self.permit.settle(actual);
        if let Ok(mut total) = self.total.lock() {
            total.tokens += actual;
        }
    }
}

fn tokens(headers: &HeaderMap, name: &str) -> f64 {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.parse().ok()).unwrap_or(100.0)
}

/// Sends requests until the end, and cancels every third stream halfway. Returns the numbers of rejected
/// requests and of cancelled streams.
async fn client(n: usize, url: reqwest::Url, end: Instant) -> (usize, usize) {
    let client = reqwest::Client::new();
    let (mut rejected, mut cancelled) = (0, 0);
    for round in n.. {
        if Instant::now() >= end {
            break;
        }
        // Estimates are too high most of the time, and sometimes too low.
        let (estimate, length) = (60 + 10 * (round % 7), 20 + 17 * (round % 6));
        let request = client
            .get(url.clone())
            .header("x-max-tokens", estimate)
            .header("x-length", length);
        let Ok(mut response) = request.send().await else {
            break;
        };
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            rejected += 1;
            tokio::time::sleep(RUN / 10).await;
            continue;
        }
        let mut received = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            received += chunk.len() / TOKEN.len();
            if round % 3 == 0 && 2 * received >= length {
                cancelled += 1;
                break;
            }
        }
    }
    (rejected, cancelled)
}

/// A model that streams ten tokens every 10 ms.
async fn model(headers: HeaderMap) -> Body {
    let length = tokens(&headers, "x-length") as usize;
    Body::from_stream(stream::unfold(length, async |left| {
        let now = left.min(10);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let chunk = Bytes::from(TOKEN.repeat(now));
        (now > 0).then_some((Ok::<_, Infallible>(chunk), left - now))
    }))
}

async fn serve(app: Router) -> Result<reqwest::Url, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?).parse()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

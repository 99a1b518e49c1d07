//! axum behind a limit, and reqwest as its client.

use std::time::Duration;

use axum::{Router, body::Body, response::Response, routing::get};
use tokio::net::TcpListener;
use tower_throttle::{
    Fallback, Limiter, Quota, RateLimitLayer, Rejected, Scope, Scopes,
    reply::{EXPOSE_HEADERS, HeaderStyle, status},
};

use super::{
    DAY, RedisServer,
    answer::{Answer, SHOWN},
    table::Row,
    without_redis,
};

const SECOND: Duration = Duration::from_secs(1);
const API: Scope = DAY.scope("api");
/// The second request is three tokens short, which refill in half a day.
const EXPENSIVE: Scope = Quota::per_day(6.0).scope("api").cost(4.5);
const SITE: Scope = Quota::per_day(1_000.0).scope("site");

/// A router over a socket, and its client.
struct Client {
    url: String,
    client: reqwest::Client,
}

impl Client {
    async fn of(limited: impl FnOnce(Router) -> Router) -> Self {
        let router = limited(Router::new().route("/", get(async || "hello")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = reqwest::Client::builder().no_proxy().build();
        let client = client.expect("a client");
        Self { url, client }
    }

    /// The last of `requests` responses, parsed.
    async fn nth(&self, requests: usize) -> Vec<String> {
        for _ in 1..requests {
            self.ask().await;
        }
        self.ask().await.read()
    }

    async fn ask(&self) -> Answer {
        let response = self.client.get(&self.url).send().await.expect("an answer");
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await.expect("a body"),
        }
    }
}

/// The `Row` of the last of several responses through these layers, the first of them innermost.
macro_rules! row {
    ($rows:ident, $case:literal, $named:literal, $nth:literal, $($layer:expr),+) => {
        let client = Client::of(|router| router$(.layer($layer))+).await;
        let answer = client.nth($nth).await;
        $rows.push(Row { case: $case, layer: $named, answer });
    };
}

pub(crate) async fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    styles(&mut rows).await;
    several(&mut rows).await;
    rare(&mut rows).await;
    outages(&mut rows).await;
    rows
}

/// With the buckets in an available Redis.
async fn styles(rows: &mut Vec<Row>) {
    let server = RedisServer::start().await;
    let limiter = connect(&server);
    let scope = |style: &str| API.key(style);
    let draft = RateLimitLayer::new(&limiter, scope("draft")).respond_http();
    let legacy = RateLimitLayer::new(&limiter, scope("legacy")).respond_http();
    let legacy = legacy.headers(HeaderStyle::Legacy);
    let both = RateLimitLayer::new(&limiter, scope("both")).respond_http();
    let both = both.max_wait(Duration::ZERO).headers(HeaderStyle::Both);
    let none = RateLimitLayer::new(&limiter, scope("none")).respond_http();
    let none = none.headers(HeaderStyle::None).max_wait(Duration::ZERO);
    let problem = RateLimitLayer::new(&limiter, scope("problem")).respond_http();
    row!(rows, "admitted", ".respond_http()", 1, draft.clone());
    row!(rows, "rejected", ".respond_http()", 2, draft);
    row!(
        rows,
        "admitted",
        ".headers(HeaderStyle::Legacy)",
        1,
        legacy.clone()
    );
    row!(rows, "rejected", ".headers(HeaderStyle::Legacy)", 2, legacy);
    row!(
        rows,
        "admitted",
        ".headers(HeaderStyle::Both)",
        1,
        both.clone()
    );
    row!(rows, "rejected", ".headers(HeaderStyle::Both)", 2, both);
    row!(
        rows,
        "admitted",
        ".headers(HeaderStyle::None)",
        1,
        none.clone()
    );
    row!(rows, "rejected", ".headers(HeaderStyle::None)", 2, none);
    row!(
        rows,
        "rejected",
        ".problem_json()",
        3,
        problem.problem_json()
    );
    let own = |rejected: &Rejected| {
        let mut response = Response::new(Body::from("slow down"));
        *response.status_mut() = status(rejected);
        HeaderStyle::Draft.write_rejected(rejected, response.headers_mut());
        response
    };
    let own = RateLimitLayer::new(&limiter, scope("own")).respond(own);
    row!(
        rows,
        "rejected, with a body of your own",
        ".respond(…)",
        3,
        own
    );
    let paced = Quota::per_second(10.0).burst(1.0).scope("paced");
    let paced = RateLimitLayer::new(&limiter, paced).respond_http();
    row!(
        rows,
        "admitted after a wait",
        ".max_wait(…)",
        2,
        paced.max_wait(60 * SECOND)
    );
    let expensive = RateLimitLayer::new(&limiter, EXPENSIVE.key("expensive")).respond_http();
    row!(
        rows,
        "rejected, the wait would exceed `max_wait`",
        ".max_wait(…)",
        2,
        expensive.max_wait(SECOND)
    );
}

/// A limiter whose timeouts are longer than the delays of a busy machine.
fn connect(server: &RedisServer) -> Limiter {
    let limiter = Limiter::builder().redis(server.url());
    limiter
        .redis_timeout(30 * SECOND)
        .build()
        .expect("a limiter")
}

async fn several(rows: &mut Vec<Row>) {
    let layer = |scopes| RateLimitLayer::new(&Limiter::in_memory(), scopes).respond_http();
    let both = layer([SITE, API]).headers(HeaderStyle::Both);
    row!(
        rows,
        "admitted by several scopes",
        ".headers(HeaderStyle::Both)",
        1,
        both.clone()
    );
    row!(
        rows,
        "rejected by one of several scopes",
        ".headers(HeaderStyle::Both)",
        2,
        both
    );
    let keys = layer([API.key("one"), API.key("two")]);
    row!(
        rows,
        "admitted by two keys of one scope",
        ".respond_http()",
        1,
        keys
    );
    let layer = |scope: Scope| {
        let layer = RateLimitLayer::new(&Limiter::in_memory(), scope).respond_http();
        layer.headers(HeaderStyle::Both)
    };
    row!(
        rows,
        "admitted by two layers, the outer one tighter",
        ".headers(HeaderStyle::Both)",
        1,
        layer(SITE),
        layer(API)
    );
    row!(
        rows,
        "admitted by two layers, the inner one tighter",
        ".headers(HeaderStyle::Both)",
        1,
        layer(API),
        layer(SITE)
    );
    // Retry-After is the inner layer's, so this cannot be checked as one response.
    let client = Client::of(|router| router.layer(layer(API)).layer(layer(SITE))).await;
    client.nth(2).await;
    let rejected = client.ask().await;
    assert_eq!(rejected.status, 429);
    assert_eq!(rejected.members("ratelimit", "r", "t")[0].1, 0);
    assert_eq!(rejected.members("ratelimit", "r", "t")[1].1, 997);
    assert_eq!(rejected.number("x-ratelimit-remaining"), Some(0));
    assert_eq!(rejected.number("x-ratelimit-limit"), Some(2));
}

async fn rare(rows: &mut Vec<Row>) {
    let layer = |scope| RateLimitLayer::new(&Limiter::in_memory(), scope).respond_http();
    let never = layer(API.cost(3.0));
    row!(
        rows,
        "rejected, the cost exceeds the capacity",
        ".problem_json()",
        1,
        never.problem_json()
    );
    let many: Vec<_> = (0..129).map(|key| API.key(key)).collect();
    let many = RateLimitLayer::new(&Limiter::in_memory(), many).respond_http();
    row!(
        rows,
        "more than 128 scopes",
        ".problem_json()",
        1,
        many.problem_json()
    );
    row!(
        rows,
        "rejected with too few tokens left",
        ".respond_http()",
        2,
        layer(EXPENSIVE)
    );
    let named = layer(Scope::new("für \"50%\"", DAY));
    row!(
        rows,
        "admitted by a name beyond ASCII",
        ".respond_http()",
        1,
        named
    );
    let year = Duration::from_secs(86_400 * 365);
    let large = layer(Quota::per(year, 1e-9).burst(1e18).scope("large").cost(1e12));
    row!(
        rows,
        "admitted, numbers beyond 15 digits",
        ".respond_http()",
        1,
        large
    );
    let free = layer(API.cost(0.0));
    row!(rows, "admitted at no cost", ".respond_http()", 1, free);
    let unlimited = RateLimitLayer::new(&Limiter::in_memory(), Scopes::default()).respond_http();
    row!(rows, "not limited", ".respond_http()", 1, unlimited);
    // A script may read the first two fields anyway.
    for name in &SHOWN[2..] {
        assert!(EXPOSE_HEADERS.split(", ").any(|exposed| exposed == *name));
    }
}

async fn outages(rows: &mut Vec<Row>) {
    let mut server = RedisServer::start().await;
    let limiter = connect(&server);
    let layer = RateLimitLayer::new(&limiter, API).respond_http();
    let layer = layer.problem_json().headers(HeaderStyle::Both);
    let client = Client::of(|router| router.layer(layer)).await;
    assert_eq!(client.ask().await.number("x-ratelimit-remaining"), Some(1));
    server.kill9();
    let layers = ".problem_json().headers(HeaderStyle::Both)";
    for case in ["admitted without Redis", "rejected without Redis"] {
        let answer = client.nth(1).await;
        rows.push(Row {
            case,
            layer: layers,
            answer,
        });
    }
    let closed = API.fallback(Fallback::FailClosed);
    let closed = RateLimitLayer::new(&without_redis().await, closed).respond_http();
    row!(
        rows,
        "unavailable: no Redis, `Fallback::FailClosed`",
        ".problem_json()",
        1,
        closed.problem_json()
    );
}

/// The reply can produce the bodies that services use, whatever else they can be made from.
#[test]
fn bodies() {
    use axum::http::{Request, Response};
    use tower_throttle::reply::{HttpReply, ProblemJson, Reply};

    type Never = std::convert::Infallible;
    fn empty<B>()
    where
        HttpReply: Reply<Request<()>, Response<B>, Never>,
    {
    }
    fn problem<B>()
    where
        HttpReply: Reply<Request<()>, Response<B>, Never>,
        HttpReply<ProblemJson>: Reply<Request<()>, Response<B>, Never>,
    {
    }
    problem::<Body>();
    problem::<String>();
    problem::<bytes::Bytes>();
    problem::<http_body_util::Full<bytes::Bytes>>();
    problem::<Vec<u8>>();
    empty::<tonic::body::Body>();
    empty::<http_body_util::Empty<bytes::Bytes>>();
    empty::<()>();
}

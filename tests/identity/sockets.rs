//! Real sockets: axum with reqwest and with raw bytes, behind real proxies, and tonic.

use std::{fmt, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    middleware::{Next, from_fn},
    response::Response,
    routing::{any, get},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::{
    Code,
    transport::{Endpoint, Server, server::TcpIncoming},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower_throttle::{
    RateLimitLayer,
    extract::{extension, matched_path},
};

use super::*;

const CLIENT: Scope = Quota::per_day(2.0).scope("client");

pub(super) async fn listen(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("a port");
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub(super) async fn serve(address: &str, router: Router) -> SocketAddr {
    let (listener, address) = listen(address).await;
    let router = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Responds with the address that it finds for the client.
fn responds_with_client(client: ClientIp) -> Router {
    let found = async move |req: Request| client.find(&req).map(|ip| ip.to_string());
    Router::new().route(
        "/",
        any(async move |req| found(req).await.unwrap_or_default()),
    )
}

/// A client with an address of its own: all of 127.0.0.0/8 is this machine.
pub(super) fn from(address: &str) -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy();
    client.local_address(ip(address)).build().unwrap()
}

/// Sends these lines after the head of a request. Returns the status and body of the response.
pub(super) async fn raw(address: SocketAddr, lines: &[u8]) -> (u16, String) {
    let head = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
    raw_head(address, &[head, lines].concat()).await
}

/// Sends these bytes as the head of a request. Returns the status and body of the response.
pub(super) async fn raw_head(address: SocketAddr, head: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head).await.unwrap();
    stream.write_all(b"\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head[9..12].parse().expect("a status"), body.to_owned())
}

/// Forwards each request to `next`, and appends the address it saw.
fn proxy(own: &str, next: SocketAddr) -> Router {
    let passes = (from(own), format!("http://{next}/"));
    let pass = async |State(passes): State<Arc<(reqwest::Client, String)>>, req: Request| {
        let ConnectInfo(peer) = *req.extensions().get::<ConnectInfo<SocketAddr>>().unwrap();
        let mut headers = req.headers().clone();
        headers.remove("host");
        let seen = peer.ip().to_string();
        headers.append(XFF, seen.parse().unwrap());
        headers.append("forwarded", format!("for={seen}").parse().unwrap());
        let sent = passes.0.get(&passes.1).headers(headers).send().await;
        sent.unwrap().text().await.unwrap()
    };
    Router::new().fallback(pass).with_state(Arc::new(passes))
}

#[tokio::test]
async fn forged_header_through_two_proxies_is_ignored() {
    let trusted = TrustedProxies::none()
        .networks(["127.0.0.2", "127.0.0.3"])
        .unwrap();
    for client in [
        client_ip(trusted.clone()),
        client_ip(trusted.clone().forwarded()),
        client_ip(trusted.clone().hops(2)),
    ] {
        let server = serve("127.0.0.1:0", responds_with_client(client)).await;
        let inner = serve("127.0.0.1:0", proxy("127.0.0.3", server)).await;
        let outer = serve("127.0.0.1:0", proxy("127.0.0.2", inner)).await;
        for forged in [
            "",
            "192.0.2.66",
            "127.0.0.2",
            "127.0.0.3, 127.0.0.2",
            "for=\"127.0.0.2",
        ] {
            let get = |to: SocketAddr| {
                let request = from("127.0.0.9").get(format!("http://{to}/"));
                request
                    .header(XFF, forged)
                    .header("forwarded", forged)
                    .send()
            };
            let found = async |to| get(to).await.unwrap().text().await.unwrap();
            assert_eq!(found(outer).await, "127.0.0.9", "{forged:?}");
            // A direct connection to the server comes from an untrusted peer.
            assert_eq!(found(server).await, "127.0.0.9", "{forged:?}");
        }
    }
}

#[tokio::test]
async fn unusual_bytes_are_parsed_safely() {
    let client = client_ip(TrustedProxies::loopback());
    let server = serve("127.0.0.1:0", responds_with_client(client)).await;
    let long = [
        b"X-Forwarded-For: ".to_vec(),
        vec![b'9'; 10_000],
        b", 203.0.113.7\r\n".to_vec(),
    ];
    let many = b"x-forwarded-for: 192.0.2.66\r\n".repeat(50);
    for (head, expected) in [
        (&b"X-FORWARDED-FOR:203.0.113.7\r\n"[..], "203.0.113.7"),
        (
            b"x-forwarded-for: 192.0.2.66\r\nX-Forwarded-For: 203.0.113.7 \r\n",
            "203.0.113.7",
        ),
        (
            b"x-forwarded-for: \xff\xc0\x80, 203.0.113.7\r\n",
            "203.0.113.7",
        ),
        (b"x-forwarded-for: 203.0.113.7\xff\r\n", "127.0.0.1"),
        (b"x-forwarded-for:\t \r\n", "127.0.0.1"),
        (
            b"x-forwarded-for:\r\nx-forwarded-for: [::ffff:203.0.113.7]:1\r\n",
            "203.0.113.7",
        ),
        (b"x_forwarded_for: 192.0.2.66\r\n", "127.0.0.1"),
        (&long.concat(), "203.0.113.7"),
        (
            &[many, b"x-forwarded-for: 203.0.113.7\r\n".to_vec()].concat(),
            "203.0.113.7",
        ),
    ] {
        let (status, found) = raw(server, head).await;
        assert_eq!(
            (status, &*found),
            (200, expected),
            "{}",
            head.escape_ascii()
        );
    }
}

#[tokio::test]
async fn forged_headers_select_one_bucket() {
    let limiter = Limiter::in_memory();
    let limit = CLIENT.by(client_ip(TrustedProxies::none())).or(CLIENT);
    let limit = RateLimitLayer::new(&limiter, limit).respond_http();
    let hello = Router::new().route("/", get(async || "hello"));
    let server = serve("127.0.0.1:0", hello.layer(limit)).await;
    for (nth, expected) in [200, 200, 429, 429].into_iter().enumerate() {
        let forged = format!("x-forwarded-for: 192.0.2.{nth}\r\nx-real-ip: 192.0.2.{nth}\r\n");
        assert_eq!(raw(server, forged.as_bytes()).await.0, expected);
    }
    assert_eq!(limiter.scopes_held(), 1);
    // Another address has another bucket.
    let url = format!("http://{server}/");
    assert_eq!(
        from("127.0.0.9").get(url).send().await.unwrap().status(),
        200
    );
    assert_eq!(
        limiter
            .bucket(&CLIENT.key("127.0.0.9"))
            .level()
            .await
            .unwrap()
            .floor(),
        1.0
    );
}

#[tokio::test]
async fn peers_of_both_address_families() {
    let peer = Router::new().route(
        "/",
        get(async |req: Request| {
            peer_ip()
                .find(&req)
                .map(|ip| ip.to_string())
                .unwrap_or_default()
        }),
    );
    let server = serve("127.0.0.1:0", peer.clone()).await;
    assert_eq!(raw(server, b"").await.1, "127.0.0.1");
    if TcpListener::bind("[::1]:0").await.is_err() {
        println!("no IPv6 here");
        return;
    }
    let server = serve("[::1]:0", peer.clone()).await;
    assert_eq!(raw(server, b"").await.1, "::", "its first 64 bits");
    // A socket of both families reports IPv4 as IPv4-mapped IPv6.
    let server = serve("[::]:0", peer).await;
    let through_v4 = SocketAddr::new(ip("127.0.0.1"), server.port());
    assert_eq!(raw(through_v4, b"").await.1, "127.0.0.1");
}

#[tokio::test]
async fn function_is_a_key_extractor() {
    let limiter = Limiter::in_memory();
    let limit = RateLimitLayer::new(&limiter, CLIENT.by((method(), peer_ip())).or(CLIENT));
    let hello = Router::new().route("/", get(async || "hello"));
    let server = serve("127.0.0.1:0", hello.layer(limit.respond_http())).await;
    assert_eq!(raw(server, b"").await.0, 200);
    let bucket = CLIENT.keys(["GET", "127.0.0.1"]);
    assert_eq!(limiter.bucket(&bucket).level().await.unwrap().floor(), 1.0);
}

#[derive(Clone)]
struct User(String);

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[tokio::test]
async fn routes_and_users_are_keys() {
    const ROUTE: Scope = Quota::per_day(2.0).scope("route");
    let limiter = Limiter::in_memory();
    let layer = || {
        let by = ROUTE
            .by((method(), matched_path(), extension::<User>()))
            .or_unlimited();
        RateLimitLayer::new(&limiter, by).respond_http()
    };
    // Real authentication is out of scope here.
    let authenticate = from_fn(async |mut req: Request, next: Next| -> Response {
        let user = req
            .headers()
            .get("x-user")
            .map(|user| user.to_str().unwrap().to_owned());
        if let Some(user) = user {
            req.extensions_mut().insert(User(user));
        }
        next.run(req).await
    });
    let hello = async || "hello";
    let inner = Router::new().route("/deep/{id}", get(hello)).layer(layer());
    let router = Router::new()
        .route("/users/{id}", get(hello).post(hello))
        .route_layer(layer())
        .nest("/api", inner)
        .layer(authenticate);
    let server = serve("127.0.0.1:0", router).await;
    let http = from("127.0.0.1");
    let status = async |post: bool, path: &str, user: &str| {
        let url = format!("http://{server}{path}");
        let request = if post { http.post(url) } else { http.get(url) };
        request
            .header("x-user", user)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    // Each user has one bucket per route, whichever path the route has matched.
    for (path, expected) in [("/users/1", 200), ("/users/2", 200), ("/users/3", 429)] {
        assert_eq!(status(false, path, "ann").await, expected, "{path}");
    }
    assert_eq!(status(false, "/users/3", "bob").await, 200);
    assert_eq!(status(true, "/users/3", "ann").await, 200);
    for (path, expected) in [
        ("/api/deep/1", 200),
        ("/api/deep/2", 200),
        ("/api/deep/3", 429),
    ] {
        assert_eq!(status(false, path, "ann").await, expected, "{path}");
    }
    let bucket = ROUTE.keys(["GET", "/api/deep/{id}", "ann"]);
    assert_eq!(limiter.bucket(&bucket).level().await.unwrap().floor(), 0.0);
    // Without a user there is no key, and the request is not limited here.
    for _ in 0..4 {
        let url = format!("http://{server}/users/1");
        assert_eq!(http.get(url).send().await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn tonic_server_finds_clients_behind_proxies() {
    for (trusted, buckets) in [(TrustedProxies::loopback(), 2), (TrustedProxies::none(), 1)] {
        let limiter = Limiter::in_memory();
        let layer = RateLimitLayer::new(&limiter, CLIENT.by(client_ip(trusted)).or(CLIENT));
        let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = incoming.local_addr().unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let server = Server::builder()
            .layer(layer.respond_http())
            .add_service(health);
        tokio::spawn(server.serve_with_incoming(incoming));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let mut client = HealthClient::new(endpoint.connect().await.unwrap());
        let mut codes = Vec::new();
        for seen in ["203.0.113.7", "203.0.113.7", "203.0.113.7", "203.0.113.8"] {
            let mut request = tonic::Request::new(HealthCheckRequest::default());
            let metadata = request.metadata_mut();
            metadata.append(XFF, format!("192.0.2.{}", codes.len()).parse().unwrap());
            metadata.append(XFF, seen.parse().unwrap());
            let answer = client.check(request).await;
            codes.push(answer.map_or_else(|status| status.code(), |_| Code::Ok));
        }
        let last = if buckets == 2 {
            Code::Ok
        } else {
            Code::ResourceExhausted
        };
        assert_eq!(codes, [Code::Ok, Code::Ok, Code::ResourceExhausted, last]);
        assert_eq!(limiter.scopes_held(), buckets);
    }
}

//! What a client may choose: invented keys, spellings of one key, and paths.

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use tower_throttle::{RateLimitLayer, extract::extension};

use super::{
    sockets::{from, raw, serve},
    *,
};

const CLIENT: Scope = Quota::per_day(20.0).scope("client");
const UNKNOWN: Scope = Quota::per_day(20.0).scope("unknown-client");
const ACCOUNT: Scope = Quota::per_day(7.0).scope("account");

#[derive(Clone)]
struct Account {
    id: u64,
}

/// The limits of the README, behind an authentication that knows one key and lets those without
/// one pass.
async fn behind_authentication(limiter: &Limiter) -> std::net::SocketAddr {
    let authenticate = from_fn(async |mut req: Request, next: Next| -> Response {
        let key = req.headers().get("x-api-key");
        if key.is_some_and(|key| key == "checked") {
            req.extensions_mut().insert(Account { id: 7 });
        }
        next.run(req).await
    });
    let limits = (
        CLIENT.by(client_ip(TrustedProxies::none())).or(UNKNOWN),
        ACCOUNT
            .by(extension::<Account>().key(|account| account.id))
            .or_unlimited(),
    );
    let router = Router::new()
        .route("/", get(async || "hello"))
        .layer(RateLimitLayer::new(limiter, limits).respond_http())
        .layer(authenticate);
    serve("127.0.0.1:0", router).await
}

#[tokio::test]
async fn invented_keys_do_not_raise_what_one_address_gets() {
    let limiter = Limiter::in_memory();
    let server = behind_authentication(&limiter).await;
    let mut admitted = 0;
    for n in 0..100u8 {
        let key = match n % 5 {
            0 => format!("x-api-key: invented-{n}\r\n").into_bytes(),
            1 => [&b"x-api-key: k"[..], &[0x80 | n, b'\r', b'\n']].concat(),
            2 => format!("x-api-key: checked\r\nx-api-key: {n}\r\nx-user: {n}\r\n").into_bytes(),
            3 => format!("x-api-key:{}\r\n", " ".repeat(n.into())).into_bytes(),
            _ => Vec::new(),
        };
        admitted += u32::from(raw(server, &key).await.0 == 200);
    }
    assert_eq!(admitted, 20);
    assert_eq!(limiter.scopes_held(), 2, "the client and the account");
}

#[tokio::test]
async fn an_account_has_one_bucket_from_all_addresses() {
    let limiter = Limiter::in_memory();
    let server = behind_authentication(&limiter).await;
    let mut admitted = 0;
    for n in 0..12 {
        let http = from(["127.0.0.3", "127.0.0.4"][n % 2]);
        let request = http.get(format!("http://{server}/"));
        let answer = request.header("x-api-key", "checked").send().await.unwrap();
        admitted += u32::from(answer.status() == 200);
    }
    assert_eq!(admitted, 7);
    assert_eq!(limiter.peek(&ACCOUNT.key(7)).await.tokens().floor(), 0.0);
}

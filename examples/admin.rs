//! Shows how an operator inspects and adjusts buckets: read the level, fill a bucket, add or take
//! tokens.
//!
//! This is a separate server, for this machine only, on the same Redis as the services whose limits
//! it adjusts. Each request needs a token, which is compared in constant time. Only the scopes that
//! are listed below exist: a misspelled name does not create a bucket.
//!
//! Run it with a token, and send it requests:
//!
//! ```text
//! export ADMIN_TOKEN=$(openssl rand -hex 32) REDIS_URL=redis://127.0.0.1:6379
//! cargo run --example admin
//!
//! curl -H "authorization: Bearer $ADMIN_TOKEN" http://127.0.0.1:9900/scopes
//! curl -H "authorization: Bearer $ADMIN_TOKEN" http://127.0.0.1:9900/scopes/tenant/level \
//!     --json '{"key": "acme"}'
//! curl -H "authorization: Bearer $ADMIN_TOKEN" http://127.0.0.1:9900/scopes/tenant/adjust \
//!     --json '{"key": "acme", "tokens": 50}'
//! curl -H "authorization: Bearer $ADMIN_TOKEN" http://127.0.0.1:9900/scopes/tenant/reset \
//!     --json '{"key": "acme"}'
//! # The bucket of `API_KEY.by(header("x-api-key"))` in the services:
//! curl -H "authorization: Bearer $ADMIN_TOKEN" http://127.0.0.1:9900/scopes/api-key/reset \
//!     --json '{"key": "sk-3f9a"}'
//! # The bucket of a tuple of keys, `ROUTE.by((method(), matched_path()))`:
//! curl -H "authorization: Bearer $ADMIN_TOKEN" http://127.0.0.1:9900/scopes/route/level \
//!     --json '{"key": ["GET", "/users/{id}"]}'
//! ```
//!
//! Keys are sent in bodies, because URLs are logged. If the services set a key prefix or a key
//! secret, set the same here.

use std::{net::Ipv4Addr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_throttle::{Limiter, Quota, Scope};

/// The same names and quotas as in the services.
const TENANT: Scope = Quota::per_minute(60.0).burst(20.0).scope("tenant");
const SITE: Scope = Quota::per_second(500.0).scope("site");
const API_KEY: Scope = Quota::per_minute(60.0).burst(20.0).scope("api-key");
const ROUTE: Scope = Quota::per_second(50.0).scope("route");

/// In bytes. A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let token = token(std::env::var("ADMIN_TOKEN").ok())?;
    let limiter = match std::env::var("REDIS_URL") {
        Ok(url) => Limiter::redis(&url)?,
        Err(_) => Limiter::in_memory(),
    };
    let port = match std::env::var("ADMIN_PORT") {
        Ok(port) => port.parse()?,
        Err(_) => 9900,
    };
    // Loopback only: operators on other machines use a tunnel.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("http://{}/scopes", listener.local_addr()?);
    let scopes = [TENANT, SITE, API_KEY, ROUTE];
    axum::serve(listener, router(&limiter, scopes, &token))
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    limiter.deregister().await;
    Ok(())
}

/// Checks the token from the environment.
pub fn token(given: Option<String>) -> Result<String, Error> {
    match given.map(|token| token.trim().to_owned()) {
        None => Err("set ADMIN_TOKEN to a long random string: openssl rand -hex 32".into()),
        Some(token) if token.len() < SHORTEST_TOKEN => {
            Err(format!("ADMIN_TOKEN is too short: {SHORTEST_TOKEN} bytes at least").into())
        }
        Some(token) => Ok(token),
    }
}

struct Admin {
    limiter: Limiter,
    scopes: Vec<Scope>,
    /// The hash of the token. Hashes are compared in constant time.
    token: blake3::Hash,
}

/// Routes to the buckets of these scopes, for requests with the token.
pub fn router(limiter: &Limiter, scopes: impl IntoIterator<Item = Scope>, token: &str) -> Router {
    let admin = Arc::new(Admin {
        limiter: limiter.clone(),
        scopes: scopes.into_iter().collect(),
        token: blake3::hash(token.as_bytes()),
    });
    Router::new()
        .route("/scopes", get(list))
        .route("/scopes/{name}/level", post(level))
        .route("/scopes/{name}/reset", post(reset))
        .route("/scopes/{name}/adjust", post(adjust))
        // Inside the authorization, so that a request without the token cannot probe for paths.
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(from_fn_with_state(admin.clone(), authorize))
        .with_state(admin)
}

async fn authorize(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION);
    let token = given.and_then(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match token {
        Some(token) if blake3::hash(token.as_bytes()) == admin.token => next.run(request).await,
        _ => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            (StatusCode::UNAUTHORIZED, challenge).into_response()
        }
    }
}

async fn list(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let scope = |scope: &Scope| json!({"name": scope.name(), "quota": scope.quota().to_string()});
    let scopes: Vec<_> = admin.scopes.iter().map(scope).collect();
    Json(json!({"scopes": scopes, "health": admin.limiter.health().to_string()}))
}

async fn level(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Json(body): Json<Value>,
) -> Result<Json<Value>, BadRequest> {
    let scope = admin.scope(&name, &body)?;
    Ok(admin.level(&scope).await)
}

async fn reset(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Json(body): Json<Value>,
) -> Result<Json<Value>, BadRequest> {
    let scope = admin.scope(&name, &body)?;
    // The response states an error as `degraded`.
    let _ = admin.limiter.bucket(&scope).reset().await;
    Ok(admin.level(&scope).await)
}

async fn adjust(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Json(body): Json<Value>,
) -> Result<Json<Value>, BadRequest> {
    let scope = admin.scope(&name, &body)?;
    let tokens = body["tokens"].as_f64().ok_or(BadRequest(
        StatusCode::BAD_REQUEST,
        "tokens: a number is required",
    ))?;
    admin.limiter.bucket(&scope).adjust(tokens);
    Ok(admin.level(&scope).await)
}

impl Admin {
    /// Returns the level in Redis, or, in degraded mode, the level of this process's share.
    async fn level(&self, scope: &Scope) -> Json<Value> {
        let (tokens, degraded) = match self.limiter.bucket(scope).level().await {
            Ok(level) => (level, false),
            Err(unavailable) => (unavailable.local_level(), true),
        };
        Json(json!({
            "name": scope.name(),
            "capacity": scope.quota().capacity(),
            "tokens": tokens,
            "degraded": degraded,
        }))
    }

    /// Finds the scope that a request names.
    fn scope(&self, name: &str, body: &Value) -> Result<Scope, BadRequest> {
        let scope = self.scopes.iter().find(|scope| scope.name() == name);
        let scope = scope.ok_or(BadRequest(StatusCode::NOT_FOUND, "no limit of that name"))?;
        // A misspelled `key` must not select the bucket without a key.
        let is_known = |field: &String| matches!(field.as_str(), "key" | "tokens");
        if !body
            .as_object()
            .is_some_and(|fields| fields.keys().all(is_known))
        {
            let expected = "an object with key and tokens only";
            return Err(BadRequest(StatusCode::BAD_REQUEST, expected));
        }
        match &body["key"] {
            Value::Null => Ok(scope.clone()),
            Value::String(key) => Ok(scope.key(key)),
            Value::Array(keys) if !keys.is_empty() && keys.iter().all(Value::is_string) => {
                Ok(scope.keys(keys.iter().filter_map(Value::as_str)))
            }
            _ => {
                let expected = "key: a string, an array of strings, or none";
                Err(BadRequest(StatusCode::BAD_REQUEST, expected))
            }
        }
    }
}

/// A request that cannot be executed, and why.
struct BadRequest(StatusCode, &'static str);

impl IntoResponse for BadRequest {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": self.1}))).into_response()
    }
}

//! Responses as clients read them: each row of the table in `docs/formats.md` is an exchange over a
//! socket, read by independent parsers.
//!
//! The test fails when the document and the responses differ. `THROTTLE_FORMATS=write` writes the
//! responses between the marks instead.
#![cfg(all(feature = "redis", feature = "tonic"))]

#[path = "../support/mod.rs"]
mod support;

mod answer;
mod grpc;
mod http;
mod table;

use tower_throttle::{Limiter, Quota};

use self::{support::RedisServer, table::Row};

/// Refills too slowly to matter in a test.
const DAY: Quota = Quota::per_day(2.0);

/// A limiter whose Redis was never available.
async fn without_redis() -> Limiter {
    let mut server = RedisServer::start().await;
    server.kill9();
    Limiter::redis(&server.url()).expect("a limiter")
}

#[tokio::test]
async fn document_matches_the_answers() {
    let mut rows: Vec<Row> = http::rows().await;
    rows.extend(grpc::rows().await);
    table::compare(&rows);
}

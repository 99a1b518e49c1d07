//! How the answers of each upstream are read.

mod grpc;
mod ietf;
mod malformed;
mod profile;
mod providers;
mod time;

use http::{HeaderMap, HeaderName, StatusCode};

use super::{advice::Advice, profile::Upstream};

/// 24 November 2026, 17:00:00 UTC.
const NOW: f64 = 1_795_539_600.0;

fn read(upstream: &Upstream, status: u16, fields: &[(&str, &str)]) -> Advice {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.parse().expect("a name");
        headers.append(name, value.parse().expect("a value"));
    }
    upstream.read(
        StatusCode::from_u16(status).expect("a status"),
        &headers,
        NOW,
    )
}

/// Seconds, rounded to milliseconds.
fn pause_of(upstream: &Upstream, status: u16, fields: &[(&str, &str)]) -> Option<f64> {
    let pause = read(upstream, status, fields).pause;
    pause.map(|pause| (pause.as_secs_f64() * 1e3).round() / 1e3)
}

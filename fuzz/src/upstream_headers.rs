//! What upstreams send: `Retry-After`, the fields of providers, and `RateLimit` of the IETF draft.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, StatusCode};
use tower_throttle::{
    fuzz::{Advice, advice, jittered},
    upstream::Upstream,
};

use crate::{NOW, header_value, numbers_from};

const CAP: Duration = Duration::from_secs(3_600);

/// The first line of the input is a status code, and each other line a field, `name: value`.
///
/// - A pause is at most the cap, with jitter too, and a shorter cap only cuts it.
/// - What remains of a budget is a finite number of tokens that is not below zero.
/// - A time that is written here, with a number from the input, is read as that time in all forms.
pub fn upstream_headers(data: &[u8]) {
    let mut lines = data[..data.len().min(4_096)].split(|byte| *byte == b'\n');
    let status = lines
        .next()
        .and_then(|line| StatusCode::from_bytes(line).ok());
    let status = status.unwrap_or(StatusCode::TOO_MANY_REQUESTS);
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        if let Ok(name) = HeaderName::from_bytes(&line[..colon]) {
            headers.append(name, header_value(line[colon + 1..].trim_ascii()));
        }
    }
    let mut numbers = numbers_from(data);
    for upstream in upstreams() {
        bounded(&upstream, status, &headers, &mut numbers);
    }
    for seconds in [numbers.u32(1..100), numbers.u32(..1_000_000_000)] {
        waits(seconds);
    }
}

fn upstreams() -> [Upstream; 6] {
    [
        Upstream::retry_after(),
        Upstream::openai(),
        Upstream::anthropic().field("input-tokens", "a"),
        Upstream::github(),
        Upstream::ietf().field("tokens", "a"),
        Upstream::grpc(),
    ]
    .map(|upstream| upstream.cap(CAP))
}

fn bounded(
    upstream: &Upstream,
    status: StatusCode,
    headers: &HeaderMap,
    numbers: &mut fastrand::Rng,
) {
    let advice = |upstream: &Upstream| advice(upstream, status, headers, NOW as f64);
    let read = advice(upstream);
    for (budget, remaining) in &read.remaining {
        let sane = remaining.is_finite() && *remaining >= 0.0;
        assert!(sane, "{remaining} tokens remain of {budget:?}: {headers:?}");
    }
    let shorter = Duration::from_millis(numbers.u64(..10_000));
    let cut = Advice {
        pause: read.pause.map(|pause| pause.min(shorter)),
        remaining: read.remaining.clone(),
        is_exhausted: read.is_exhausted,
    };
    assert_eq!(advice(&upstream.clone().cap(shorter)), cut, "{headers:?}");
    if let Some(pause) = read.pause {
        let jittered = jittered(upstream, pause, numbers.f64());
        let bounds = pause..=CAP;
        assert!(
            bounds.contains(&jittered),
            "{jittered:?} of {pause:?}: {headers:?}"
        );
    }
}

/// A rejection that asks for a pause of `seconds`, in every form that has whole seconds.
fn waits(seconds: u32) {
    let until = UNIX_EPOCH + Duration::from_secs(NOW + u64::from(seconds));
    let date = httpdate::fmt_http_date(until);
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    let forms = [
        format!("{seconds}"),
        format!("{seconds}.000"),
        format!("{hours}h{minutes}m{}s", seconds % 60),
        format!("{}ms", u64::from(seconds) * 1_000),
        rfc_3339(&date),
        date,
        format!("{}", NOW + u64::from(seconds)),
        format!("{}", (NOW + u64::from(seconds)) * 1_000),
    ];
    let date_of_response = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(NOW));
    for form in forms {
        let mut headers = HeaderMap::new();
        headers.insert("date", header_value(date_of_response.as_bytes()));
        headers.insert("x-ratelimit-remaining-requests", header_value(b"0"));
        headers.insert("x-ratelimit-reset-requests", header_value(form.as_bytes()));
        let upstream = Upstream::openai().cap(Duration::MAX);
        // The clock of this process is wrong, which does not matter where a response has a date.
        let read = advice(&upstream, StatusCode::TOO_MANY_REQUESTS, &headers, 12.0);
        let pause = read.pause.unwrap_or_default().as_secs_f64();
        let error = (pause - f64::from(seconds)).abs();
        assert!(
            error < 1e-3,
            "{form:?} is read as {pause} s, and not as {seconds} s"
        );
    }
}

/// `Tue, 24 Nov 2026 17:00:00 GMT` in the form of RFC 3339.
fn rfc_3339(date: &str) -> String {
    let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let month = months.find(&date[8..11]).expect("a month") / 3 + 1;
    let (day, year, time) = (&date[5..7], &date[12..16], &date[17..25]);
    format!("{year}-{month:02}-{day}T{time}Z")
}

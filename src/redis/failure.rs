//! What an error of Redis means for the limiter.

use redis::{ErrorKind, RedisError};

use crate::decision::{Failure, FailureKind};

/// Server errors by which Redis says that it cannot decide now, though the next call might.
const UNAVAILABLE: [&str; 11] = [
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "READONLY",
    "BUSY",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
];

/// Server errors that every further call of this client would meet too.
const REFUSED: [&str; 4] = ["NOAUTH", "WRONGPASS", "NOPERM", "NOPROTO"];

/// Every failure is survived; this says how it is counted and logged, and whether it tells of
/// more than its own call.
///
/// The code is what the server wrote first, and tells more than the driver's classes: those
/// call a time-out retriable and a missing inner permission an ordinary error.
pub(super) fn classify(error: RedisError) -> Failure {
    let code = error.code();
    let kind = if error.is_timeout() {
        FailureKind::Timeout
    } else if error.is_io_error() {
        FailureKind::Disconnected
    } else if code.is_some_and(|code| UNAVAILABLE.contains(&code)) {
        FailureKind::Unavailable
    } else {
        FailureKind::Misconfigured
    };
    let refused = code.is_some_and(|code| REFUSED.contains(&code))
        || error.kind() == ErrorKind::AuthenticationFailed;
    let single = kind == FailureKind::Misconfigured && !refused;
    let advice = (kind == FailureKind::Misconfigured).then(|| advice(&error.to_string()));
    Failure {
        single,
        advice,
        ..Failure::new(kind, error)
    }
}

pub(super) fn timed_out() -> Failure {
    Failure::new(FailureKind::Timeout, "Redis did not answer in time")
}

/// What to do about a misconfiguration, from the words of the server.
fn advice(error: &str) -> &'static str {
    if error.contains("WRONGPASS") || error.contains("invalid username-password") {
        "the user or the password is wrong: mend the URL, or the user with ACL SETUSER"
    } else if error.contains("NOAUTH") || error.contains("Authentication required") {
        "Redis wants a password: write redis://user:password@host:port"
    } else if error.contains("NOPERM") || error.contains("ACL failure") {
        "the user lacks rights: allow +evalsha +eval +time +get +mget +set +zadd +zrem +zcard \
         +zcount +zremrangebyscore +pexpire on the key prefix"
    } else if error.contains("DB index") {
        "there is no such database: mend the number at the end of the URL"
    } else if error.contains("unknown command") {
        "this server does not know a command of the script: it takes Redis 6.2 or later, with \
         none of the commands renamed"
    } else if error.contains("CROSSSLOT") {
        "the keys lie on different nodes: write a key prefix with a hash tag, such as {limits}:"
    } else {
        "the server does not run the script: see the error"
    }
}

//! Classifies errors of the `redis` crate.

use std::io;

use redis::{ErrorKind, RedisError};

use crate::decision::{Failure, FailureKind};

/// Codes of server errors that pass without a change of configuration.
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

/// Codes of server errors that all further calls of this client would get as well.
const REJECTED: [&str; 4] = ["NOAUTH", "WRONGPASS", "NOPERM", "NOPROTO"];

/// Decides how an error is counted and logged, and whether it may concern only its own call.
///
/// The code is the first word of the server's reply. It is more precise than the kinds of the
/// driver, for which a time-out is retriable and a permission that is missing inside a script is an
/// ordinary error.
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
    let rejected = code.is_some_and(|code| REJECTED.contains(&code))
        || error.kind() == ErrorKind::AuthenticationFailed;
    let single = kind == FailureKind::Misconfigured && !rejected;
    let advice = (kind == FailureKind::Misconfigured).then(|| advice(&error));
    Failure {
        // The script writes last, and a server that rejects writes rejects the first one, so such a
        // call changed nothing.
        sent: error.is_io_error() || code.is_none(),
        single,
        advice,
        ..Failure::new(kind, error)
    }
}

pub(super) fn io_failure(error: io::Error) -> Failure {
    classify(error.into())
}

/// What the operator can do about a misconfiguration. Decided by the code if there is one: the
/// driver does not print it as the server wrote it. Errors inside a script have the code `ERR`.
fn advice(error: &RedisError) -> &'static str {
    let code = error.code().unwrap_or_default();
    let text = error.to_string().to_ascii_lowercase();
    let contains = |part: &str| text.contains(part);
    if code == "NOAUTH" || contains("authentication required") {
        "Redis requires a password: use redis://user:password@host:port"
    } else if code == "WRONGPASS" || error.kind() == ErrorKind::AuthenticationFailed {
        "wrong user or password: correct the URL, or the user with ACL SETUSER"
    } else if contains("'select'") {
        "the user has no permission to select the database in the URL: grant +select, or remove \
         the number at the end of the URL"
    } else if (code == "NOPERM"
        || contains("acl failure")
        || contains("the user executing the script"))
        && contains("access")
    {
        "the user has no permission for the keys: grant ~throttle:v1|*, or the same pattern with \
         your key prefix"
    } else if code == "NOPERM"
        || contains("acl failure")
        || contains("the user executing the script")
    {
        "the user lacks permissions: grant +evalsha +eval +time +hmget +hset +hdel +unlink +pttl \
         +pexpire +get +set +zadd +zrem +zcount +zremrangebyscore on the key prefix"
    } else if contains("db index") {
        "the database does not exist: correct the number at the end of the URL"
    } else if contains("unknown command") || contains("unknown redis command") {
        "the server lacks a command of the script: Redis 6.2 or later is required, without renamed \
         commands"
    } else if code == "CROSSSLOT" || contains("same slot") {
        "the keys are on different nodes: use a key prefix with a hash tag, such as {limits}"
    } else {
        "the server cannot run the script: see the error"
    }
}

#[cfg(test)]
mod tests;

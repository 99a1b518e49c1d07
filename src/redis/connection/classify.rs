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
pub(crate) fn classify(error: RedisError) -> Failure {
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
    let advice = (kind == FailureKind::Misconfigured).then(|| advice(&error));
    Failure {
        // The script writes last and all or nothing, so what the server refuses left no trace.
        sent: error.is_io_error() || code.is_none(),
        single,
        advice,
        ..Failure::new(kind, error)
    }
}

/// What to do about a misconfiguration. By the code, where there is one of its own: the driver
/// does not print it as the server wrote it. What a script meets inside is a plain `ERR`.
fn advice(error: &RedisError) -> &'static str {
    let code = error.code().unwrap_or_default();
    let words = error.to_string().to_ascii_lowercase();
    let says = |part: &str| words.contains(part);
    if code == "NOAUTH" || says("authentication required") {
        "Redis wants a password: write redis://user:password@host:port"
    } else if code == "WRONGPASS" || error.kind() == ErrorKind::AuthenticationFailed {
        "the user or the password is wrong: mend the URL, or the user with ACL SETUSER"
    } else if says("'select'") {
        "the user may not choose the database that the URL names: allow +select, or remove the \
         number at the end of the URL"
    } else if (code == "NOPERM" || says("acl failure") || says("the user executing the script"))
        && says("access")
    {
        "the user may not access the keys: allow ~throttle:v1|*, or the same with your key prefix"
    } else if code == "NOPERM" || says("acl failure") || says("the user executing the script") {
        "the user lacks rights: allow +evalsha +eval +time +get +mget +set +zadd +zrem \
         +zcount +zremrangebyscore +pexpire on the key prefix"
    } else if says("db index") {
        "there is no such database: mend the number at the end of the URL"
    } else if says("unknown command") || says("unknown redis command") {
        "this server does not know a command of the script: it takes Redis 6.2 or later, with \
         none of the commands renamed"
    } else if code == "CROSSSLOT" || says("same slot") {
        "the keys lie on different nodes: write a key prefix with a hash tag, such as {limits}"
    } else {
        "the server does not run the script: see the error"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the server wrote it, through the driver.
    fn error(line: &str) -> RedisError {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes())
            .and_then(redis::Value::extract_error)
            .expect_err(line)
    }

    #[test]
    fn what_passes_by_itself() {
        for line in [
            "LOADING Redis is loading the dataset in memory",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "CLUSTERDOWN The cluster is down",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "READONLY You can't write against a read only replica.",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
            "MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk.",
            "NOREPLICAS Not enough good replicas to write.",
            "OOM command not allowed when used memory > 'maxmemory'.",
        ] {
            let failure = classify(error(line));
            assert_eq!(failure.kind, FailureKind::Unavailable, "{line}");
            assert!(!failure.single && failure.advice.is_none(), "{line}");
        }
    }

    #[test]
    fn what_does_not_and_what_to_do() {
        for (line, single, word) in [
            ("NOAUTH Authentication required.", false, "wants a password"),
            (
                "NOAUTH HELLO must be called with the client already authenticated",
                false,
                "wants a password",
            ),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                false,
                "is wrong",
            ),
            (
                "NOPERM this user has no permissions to run the 'evalsha' command",
                false,
                "lacks rights",
            ),
            (
                "NOPERM User u has no permissions to run the 'evalsha' command",
                false,
                "lacks rights",
            ),
            // Inside a script, before 7.2 and since.
            (
                "ERR The user executing the script can't run this command or subcommand \
                 script: 2a1c64c35d5d, on @user_script:207.",
                true,
                "lacks rights",
            ),
            (
                "ERR ACL failure in script: User u has no permissions to run the 'set' command",
                true,
                "lacks rights",
            ),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                false,
                "key prefix",
            ),
            ("NOPERM No permissions to access a key", false, "key prefix"),
            (
                "ERR ACL failure in script: No permissions to access a key",
                true,
                "key prefix",
            ),
            (
                "ERR this user has no permissions to run the 'select' command",
                true,
                "+select",
            ),
            ("ERR DB index is out of range", true, "no such database"),
            (
                "ERR unknown command 'EVALSHA', with args beginning with: ",
                true,
                "does not know a command",
            ),
            (
                "ERR Unknown Redis command called from script script: 2a1c, on @user_script:9.",
                true,
                "does not know a command",
            ),
            (
                "CROSSSLOT Keys in request don't hash to the same slot",
                true,
                "different nodes",
            ),
            (
                "ERR Script attempted to access keys that do not hash to the same slot",
                true,
                "different nodes",
            ),
            (
                "ERR user_script:1: attempt to index a nil value",
                true,
                "see the error",
            ),
        ] {
            let failure = classify(error(line));
            assert_eq!(failure.kind, FailureKind::Misconfigured, "{line}");
            assert_eq!(failure.single, single, "{line}");
            let advice = failure.advice.expect(line);
            assert!(advice.contains(word), "{line}: {advice}");
        }
    }

    #[test]
    fn what_the_driver_says_itself() {
        let refused = (
            ErrorKind::AuthenticationFailed,
            "Password authentication failed",
        );
        let failure = classify(refused.into());
        assert_eq!(failure.kind, FailureKind::Misconfigured);
        assert!(!failure.single);
        let advice = failure.advice.expect("something to do");
        assert!(advice.contains("is wrong"), "{advice}");
        for (kind, expected) in [
            (std::io::ErrorKind::TimedOut, FailureKind::Timeout),
            (std::io::ErrorKind::BrokenPipe, FailureKind::Disconnected),
            (
                std::io::ErrorKind::ConnectionRefused,
                FailureKind::Disconnected,
            ),
        ] {
            let failure = classify(std::io::Error::from(kind).into());
            assert_eq!(failure.kind, expected);
            assert!(!failure.single && failure.advice.is_none());
        }
    }
}

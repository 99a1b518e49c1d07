use super::*;

/// The error that the driver makes of this reply of the server.
fn error(line: &str) -> RedisError {
    redis::parse_redis_value(format!("-{line}\r\n").as_bytes())
        .and_then(redis::Value::extract_error)
        .expect_err(line)
}

#[test]
fn temporary_server_errors_are_unavailable() {
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
fn permanent_server_errors_come_with_advice() {
    for (line, single, word) in [
        (
            "NOAUTH Authentication required.",
            false,
            "requires a password",
        ),
        (
            "NOAUTH HELLO must be called with the client already authenticated",
            false,
            "requires a password",
        ),
        (
            "WRONGPASS invalid username-password pair or user is disabled.",
            false,
            "wrong user or password",
        ),
        (
            "NOPERM this user has no permissions to run the 'evalsha' command",
            false,
            "lacks permissions",
        ),
        (
            "NOPERM User u has no permissions to run the 'evalsha' command",
            false,
            "lacks permissions",
        ),
        // Inside a script, before 7.2 and since.
        (
            "ERR The user executing the script can't run this command or subcommand \
             script: 2a1c64c35d5d, on @user_script:207.",
            true,
            "lacks permissions",
        ),
        (
            "ERR ACL failure in script: User u has no permissions to run the 'hset' command",
            true,
            "lacks permissions",
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
        (
            "ERR DB index is out of range",
            true,
            "database does not exist",
        ),
        (
            "ERR unknown command 'EVALSHA', with args beginning with: ",
            true,
            "lacks a command",
        ),
        (
            "ERR Unknown Redis command called from script script: 2a1c, on @user_script:9.",
            true,
            "lacks a command",
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
fn errors_of_the_driver_are_classified() {
    let rejected = (
        ErrorKind::AuthenticationFailed,
        "Password authentication failed",
    );
    let failure = classify(rejected.into());
    assert_eq!(failure.kind, FailureKind::Misconfigured);
    assert!(!failure.single);
    let advice = failure.advice.expect("something to do");
    assert!(advice.contains("wrong user or password"), "{advice}");
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

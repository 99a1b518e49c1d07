//! Tests of the harness's faults inside a running Redis: a plain client must observe each of them,
//! or the tests that rely on them prove nothing.

mod support;

use std::time::Duration;

use redis::{RedisError, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep, timeout};

use self::support::{MARK, Proxy, RedisServer};

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(10);

/// The result of a script that writes: the code of the error, or OK.
async fn write(connection: &mut MultiplexedConnection) -> String {
    let answer: Result<(), RedisError> = redis::cmd("EVAL")
        .arg("redis.call('SET', KEYS[1], 1)")
        .arg(1)
        .arg("k")
        .query_async(connection)
        .await;
    match answer {
        Ok(()) => "OK".to_owned(),
        Err(error) => error.code().unwrap_or("no code").to_owned(),
    }
}

async fn until_writes(connection: &mut MultiplexedConnection) {
    let written = async {
        while write(connection).await != "OK" {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, written).await.expect("writes succeed again");
}

/// The seconds of the server's clock.
async fn seconds(server: &RedisServer) -> i64 {
    server.command::<(i64, i64)>(&["TIME"]).await.0
}

#[tokio::test]
async fn full_memory_rejects_writes() {
    let server = RedisServer::start().await;
    let mut client = server.connection().await;
    assert_eq!(write(&mut client).await, "OK");
    server.fill_memory().await;
    assert_eq!(write(&mut client).await, "OOM");
    server.free_memory().await;
    assert_eq!(write(&mut client).await, "OK");
}

#[tokio::test]
async fn failed_saves_reject_writes() {
    let server = RedisServer::start().await;
    let mut client = server.connection().await;
    server.fail_saves().await;
    assert_eq!(write(&mut client).await, "MISCONF");
    server.repair_saves().await;
    assert_eq!(write(&mut client).await, "OK");
}

#[tokio::test]
async fn endless_script_is_busy_until_killed() {
    let server = RedisServer::start().await;
    let mut client = server.connection().await;
    server.busy_for(LONG / 2).await;
    assert_eq!(write(&mut client).await, "BUSY");
    let _ = server.connection().await;
    server.script_kill().await;
    until_writes(&mut client).await;
    server.script_kill().await;
    server.busy_for(SHORT).await;
    assert_eq!(write(&mut client).await, "BUSY");
    until_writes(&mut client).await;
}

#[tokio::test]
async fn loading_server_restarts_with_its_data() {
    let mut server = RedisServer::start().await;
    server.command::<()>(&["SET", "kept", "7"]).await;
    let start = Instant::now();
    server.restart_loading(3 * SHORT).await;
    let mut client = server.connection().await;
    assert_eq!(write(&mut client).await, "LOADING");
    server.until_loaded().await;
    let took = start.elapsed();
    assert!(took >= 2 * SHORT && took < LONG, "{took:?}");
    assert_eq!(write(&mut client).await, "OK");
    assert_eq!(server.command::<i64>(&["GET", "kept"]).await, 7);
    // The next start is as fast as the first.
    server.restart().await;
}

#[tokio::test]
async fn masters_and_replicas_change_roles() {
    let (mut master, replica) = tokio::join!(RedisServer::start(), RedisServer::start());
    replica.replicate(&master).await;
    let mut client = replica.connection().await;
    assert_eq!(write(&mut client).await, "READONLY");
    for n in 0..100 {
        master.command::<()>(&["SET", "n", &n.to_string()]).await;
    }
    replica.until_in_sync(&master).await;
    assert_eq!(replica.command::<i64>(&["GET", "n"]).await, 99);
    master.kill9();
    replica.promote().await;
    assert_eq!(write(&mut client).await, "OK");
    replica.demote().await;
    assert_eq!(write(&mut client).await, "READONLY");
    replica.demote_without_master().await;
    assert_eq!(write(&mut client).await, "MASTERDOWN");
    replica.promote().await;
    assert_eq!(write(&mut client).await, "OK");
}

#[tokio::test]
async fn missing_rights_reject_commands() {
    let server = RedisServer::start().await;
    let url = server.url().replace("redis://", "redis://u:p@");
    server.acl_set_user("u", &["on", ">p", "~*", "+@all"]).await;
    let client = redis::Client::open(url).expect("a URL");
    let mut client = client
        .get_multiplexed_async_connection()
        .await
        .expect("a user");
    assert_eq!(write(&mut client).await, "OK");
    server.acl_set_user("u", &["-eval"]).await;
    assert_eq!(write(&mut client).await, "NOPERM");
    server.acl_set_user("u", &["+eval", "-set"]).await;
    assert_eq!(write(&mut client).await, "ERR");
    server.acl_set_user("u", &["+set"]).await;
    assert_eq!(write(&mut client).await, "OK");
}

#[tokio::test]
async fn full_server_accepts_no_clients() {
    let server = RedisServer::start().await;
    let mut client = server.connection().await;
    let full = server.fill_clients().await;
    assert_eq!(
        write(&mut client).await,
        "no code",
        "the connection was closed"
    );
    let new_client = redis::Client::open(server.url()).expect("a URL");
    let rejected = new_client.get_multiplexed_async_connection().await;
    assert!(rejected.is_err());
    full.release().await;
    assert_eq!(write(&mut server.connection().await).await, "OK");
}

#[tokio::test]
async fn clients_are_paused_and_closed() {
    let server = RedisServer::start().await;
    let mut client = server.connection().await;
    server.client_pause(LONG).await;
    assert!(timeout(SHORT, write(&mut client)).await.is_err());
    server.client_unpause().await;
    assert_eq!(write(&mut client).await, "OK");
    assert!(server.client_kill_all().await >= 1);
    assert_eq!(write(&mut client).await, "no code");
    assert_eq!(write(&mut server.connection().await).await, "OK");
}

#[tokio::test]
async fn values_and_scripts_are_removed_or_overwritten() {
    let server = RedisServer::start().await;
    let kind = async || server.command::<String>(&["TYPE", "k"]).await;
    server.set_list("k").await;
    assert_eq!(kind().await, "list");

    // Two hashes of one class, of which the second is of the present period.
    let hashes = ["throttle:v1|{#}16s:0", "throttle:v1|{#}16s:1"];
    for (hash, mark, value) in [(hashes[0], "-8", "old"), (hashes[1], "9", "new")] {
        let set: [&[u8]; 8] = [
            b"HSET",
            hash.as_bytes(),
            MARK,
            mark.as_bytes(),
            b"a",
            value.as_bytes(),
            b"b",
            b"kept",
        ];
        server.command::<()>(&set).await;
    }
    assert_eq!(server.hash_of("a").await, hashes[1]);
    assert_eq!(server.bucket("a").await, b"new");
    assert_eq!(server.buckets().await.len(), 4);
    server.set_bucket("a", b"short").await;
    assert_eq!(server.bucket("a").await, b"short");
    server.set_bucket_numbers("a", &[f64::NAN, 1.0]).await;
    let bytes = [f64::NAN.to_le_bytes(), 1f64.to_le_bytes()].concat();
    assert_eq!(server.bucket("a").await, bytes);
    server.delete_bucket("a").await;
    assert_eq!(server.buckets().await, [b"b", b"b"]);
    server.evict_hashes_of("b").await;
    assert_eq!(server.buckets().await, [b""; 0]);

    let sha: String = server.command(&["SCRIPT", "LOAD", "return 1"]).await;
    let run = async || server.try_command::<i64>(&["EVALSHA", &sha, "0"]).await;
    assert_eq!(run().await.expect("loaded"), 1);
    server.script_flush().await;
    assert_eq!(run().await.expect_err("forgotten").code(), Some("NOSCRIPT"));

    server.set_list("k").await;
    server.flush_all().await;
    assert_eq!(kind().await, "none");
}

#[tokio::test]
async fn saved_data_is_restored() {
    let mut server = RedisServer::start().await;
    server.command::<()>(&["SET", "k", "1"]).await;
    server.save().await;
    server.command::<()>(&["SET", "k", "2"]).await;
    server.restart().await;
    assert_eq!(server.command::<i64>(&["GET", "k"]).await, 1);
}

#[tokio::test]
async fn clock_is_set_and_kept_over_a_restart() {
    let mut server = RedisServer::start_with_clock(&[]).await;
    let start = seconds(&server).await;
    for ahead in [60, -60, -3_600, 0] {
        server.set_clock(ahead);
        let off = seconds(&server).await - start - ahead;
        assert!((0..10).contains(&off), "{off} s off, set to {ahead:+}");
    }
    server.set_clock(60);
    server.restart().await;
    let off = seconds(&server).await - start - 60;
    assert!((0..20).contains(&off), "{off} s off after a restart");
}

#[tokio::test]
async fn slow_proxy_limits_the_throughput() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(LONG));
    let client = redis::Client::open(proxy.url()).expect("a URL");
    let mut client = client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .expect("a connection");
    proxy.slow(10_000);
    let start = Instant::now();
    let () = redis::cmd("SET")
        .arg("k")
        .arg(vec![b'x'; 4_000])
        .query_async(&mut client)
        .await
        .expect("in the end");
    let took = start.elapsed();
    assert!(took >= 2 * SHORT && took < LONG, "{took:?} for 4,000 bytes");
    proxy.pass();
    let start = Instant::now();
    assert_eq!(write(&mut client).await, "OK");
    assert!(start.elapsed() < 10 * SHORT);
}

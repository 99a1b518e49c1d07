//! Tests of the test harness: without its faults, the tests that rely on them would prove nothing.

mod support;

use std::{path::Path, time::Duration};

use redis::{AsyncConnectionConfig, Client, RedisError, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use self::support::{Proxy, RedisServer};

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(10);

async fn ping(connection: &mut MultiplexedConnection) -> Result<String, RedisError> {
    redis::cmd("PING").query_async(connection).await
}

async fn connect(url: &str) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(LONG));
    let client = Client::open(url).expect("a valid URL");
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .expect("a connection")
}

async fn raw(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("a connection")
}

async fn refuses(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).await.is_err()
}

fn exists(pid: u32) -> bool {
    let status = std::process::Command::new("sh")
        .args(["-c", "kill -0 \"$1\" 2>/dev/null", "sh", &pid.to_string()])
        .status();
    status.expect("no sh").success()
}

async fn read(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let length = timeout(LONG, stream.read(&mut bytes))
        .await
        .expect("nothing came");
    bytes.truncate(length.expect("a reset"));
    bytes
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    timeout(SHORT, stream.read(&mut [0; 64])).await.is_err()
}

#[tokio::test]
async fn server_responds_on_both_sockets_and_counts_calls() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut connection)
        .await
        .expect("INFO failed");
    assert!(info.contains(&format!("process_id:{}\r\n", server.pid())));
    assert_eq!(
        ping(&mut connect(&server.unix_url()).await)
            .await
            .expect("PING failed"),
        "PONG"
    );

    server.reset_stats().await;
    assert_eq!(server.calls("eval").await, 0);
    for _ in 0..3 {
        let one: i64 = redis::cmd("EVAL")
            .arg("return 1")
            .arg(0)
            .query_async(&mut connection)
            .await
            .expect("EVAL failed");
        assert_eq!(one, 1);
    }
    assert_eq!(server.calls("eval").await, 3);
    assert_eq!(server.calls("evalsha").await, 0);
}

#[tokio::test]
async fn killed_server_refuses_connections_and_restarts_empty() {
    let mut server = RedisServer::start().await;
    let (port, pid) = (server.port(), server.pid());
    let mut connection = server.connection().await;
    let _: () = redis::cmd("SET")
        .arg("k")
        .arg(1)
        .query_async(&mut connection)
        .await
        .expect("SET");

    server.kill9();
    assert!(refuses(port).await && !exists(pid));
    assert!(ping(&mut connection).await.is_err());

    server.restart().await;
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    let mut connection = server.connection().await;
    let size: u64 = redis::cmd("DBSIZE")
        .query_async(&mut connection)
        .await
        .expect("DBSIZE");
    assert_eq!(size, 0);
    server.restart().await;
    assert!(ping(&mut server.connection().await).await.is_ok());
}

#[tokio::test]
async fn persistent_server_restarts_with_its_data() {
    let mut server = RedisServer::start_with(&["--appendonly", "yes"]).await;
    let mut connection = server.connection().await;
    let _: () = redis::cmd("SET")
        .arg("k")
        .arg(7)
        .query_async(&mut connection)
        .await
        .expect("SET");
    server.freeze();
    timeout(LONG, server.terminate())
        .await
        .expect("SIGTERM reaches a frozen server");
    assert!(refuses(server.port()).await);

    server.restart().await;
    let mut connection = server.connection().await;
    let value: i64 = redis::cmd("GET")
        .arg("k")
        .query_async(&mut connection)
        .await
        .expect("GET");
    assert_eq!(value, 7);
}

#[tokio::test]
async fn frozen_server_is_silent_until_thawed() {
    let server = RedisServer::start().await;
    let mut stream = raw(server.port()).await;
    server.freeze();
    stream
        .write_all(b"PING\r\n")
        .await
        .expect("a frozen server still receives");
    assert!(is_silent(&mut stream).await);
    let mut second = raw(server.port()).await;
    second
        .write_all(b"PING\r\n")
        .await
        .expect("a frozen server still accepts");
    server.thaw();
    assert_eq!(read(&mut stream).await, b"+PONG\r\n");
    assert_eq!(read(&mut second).await, b"+PONG\r\n");
}

#[tokio::test]
async fn servers_share_nothing() {
    let (mut one, two) = tokio::join!(RedisServer::start(), RedisServer::start());
    assert_ne!(one.port(), two.port());
    let mut connection = one.connection().await;
    let _: () = redis::cmd("SET")
        .arg("k")
        .arg(1)
        .query_async(&mut connection)
        .await
        .expect("SET");
    let mut connection = two.connection().await;
    let size: u64 = redis::cmd("DBSIZE")
        .query_async(&mut connection)
        .await
        .expect("DBSIZE");
    assert_eq!(size, 0);
    one.kill9();
    assert!(ping(&mut connection).await.is_ok());
}

#[tokio::test]
async fn dropped_server_leaves_nothing() {
    for frozen in [false, true] {
        let server = RedisServer::start().await;
        let (port, pid, dir) = (server.port(), server.pid(), server.dir().to_owned());
        assert!(exists(pid) && dir.exists());
        if frozen {
            server.freeze();
        }
        drop(server);
        assert!(!exists(pid) && !dir.exists() && refuses(port).await);
    }
}

#[tokio::test]
async fn panic_leaves_nothing() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let server = RedisServer::start().await;
        sender
            .send((server.pid(), server.dir().to_owned()))
            .expect("a receiver");
        panic!("as a failing test does");
    });
    let (pid, dir) = receiver.await.expect("a server");
    assert!(task.await.expect_err("it panics").is_panic());
    assert!(!exists(pid) && !dir.exists());
}

#[tokio::test]
async fn killed_test_process_leaves_nothing() {
    // This test runs itself again as a process of its own, which comes here and is killed.
    if let Some(note) = std::env::var_os("HARNESS_NOTE") {
        let server = RedisServer::start().await;
        server.freeze();
        let text = format!("{}\n{}\n", server.pid(), server.dir().display());
        std::fs::write(note, text).expect("the note is written");
        sleep(Duration::from_secs(60)).await;
    }

    let dir = tempfile::tempdir().expect("a directory");
    let note = dir.path().join("note");
    let mut test = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "killed_test_process_leaves_nothing"])
        .env("HARNESS_NOTE", &note)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("this program starts");
    let deadline = Instant::now() + LONG;
    let (pid, data) = loop {
        let text = std::fs::read_to_string(&note).unwrap_or_default();
        if let [pid, data] = text.lines().collect::<Vec<_>>()[..]
            && text.ends_with('\n')
        {
            break (pid.parse().expect("a pid"), data.to_owned());
        }
        assert!(
            Instant::now() < deadline,
            "the other process does not come up"
        );
        sleep(Duration::from_millis(10)).await;
    };
    assert!(exists(pid));
    test.kill().expect("a child of this process");
    test.wait().expect("a child of this process");
    // Without an init process that reaps orphans, the dead server stays as a zombie.
    while Path::new(&data).exists() || (exists(pid) && !is_zombie(pid)) {
        assert!(Instant::now() < deadline, "redis-server outlived its test");
        sleep(Duration::from_millis(10)).await;
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn proxy_passes_and_delays() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let mut connection = connect(&proxy.url()).await;
    assert_eq!(ping(&mut connection).await.expect("PING failed"), "PONG");
    assert_eq!(proxy.accepted(), 1);

    proxy.delay(Duration::from_millis(500));
    let start = Instant::now();
    let mut other = connection.clone();
    let (one, two) = tokio::join!(ping(&mut connection), async {
        sleep(Duration::from_millis(50)).await;
        ping(&mut other).await
    });
    assert!(one.is_ok() && two.is_ok());
    // 50 ms and twice 500 ms: the second is not queued after the first, for 1.5 s.
    let elapsed = start.elapsed().as_millis();
    assert!((1040..1450).contains(&elapsed), "{elapsed} ms");

    proxy.pass();
    assert!(ping(&mut connection).await.is_ok());
}

#[tokio::test]
async fn proxy_stalls_and_resumes() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let mut old = raw(proxy.port()).await;
    old.write_all(b"PING\r\n").await.expect("sent");
    assert_eq!(read(&mut old).await, b"+PONG\r\n");
    server.reset_stats().await;

    proxy.stall();
    let mut new = raw(proxy.port()).await;
    for stream in [&mut old, &mut new] {
        stream.write_all(b"PING\r\n").await.expect("sent");
        assert!(is_silent(stream).await);
    }
    assert_eq!(server.calls("ping").await, 0);

    proxy.pass();
    for stream in [&mut old, &mut new] {
        assert_eq!(read(stream).await, b"+PONG\r\n");
    }

    proxy.stall();
    proxy.cut();
    assert_eq!(read(&mut old).await, b"");
}

#[tokio::test]
async fn proxy_drops_replies_but_not_requests() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let mut stream = raw(proxy.port()).await;
    proxy.drop_replies();
    stream.write_all(b"INCR k\r\n").await.expect("sent");
    assert!(is_silent(&mut stream).await);
    assert_eq!(server.calls("incr").await, 1);
    proxy.pass();
    stream.write_all(b"INCR k\r\n").await.expect("sent");
    assert_eq!(read(&mut stream).await, b":2\r\n");
}

#[tokio::test]
async fn proxy_drops_replies_from_one_request_on() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let mut stream = raw(proxy.port()).await;
    proxy.drop_replies_from(b"needle");
    stream.write_all(b"INCR k\r\n").await.expect("sent");
    assert_eq!(read(&mut stream).await, b":1\r\n");
    stream.write_all(b"INCR needle\r\n").await.expect("sent");
    assert!(is_silent(&mut stream).await);
    stream.write_all(b"INCR k\r\n").await.expect("sent");
    assert!(is_silent(&mut stream).await);
    assert_eq!(server.calls("incr").await, 3);
}

#[tokio::test]
async fn proxy_refuses_cuts_and_resets() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let mut stream = raw(proxy.port()).await;
    stream.write_all(b"PING\r\n").await.expect("sent");
    assert_eq!(read(&mut stream).await, b"+PONG\r\n");

    proxy.refuse();
    assert_eq!(read(&mut raw(proxy.port()).await).await, b"");
    stream
        .write_all(b"PING\r\n")
        .await
        .expect("existing connections continue");
    assert_eq!(read(&mut stream).await, b"+PONG\r\n");

    proxy.pass();
    proxy.cut();
    assert_eq!(read(&mut stream).await, b"");

    let mut stream = raw(proxy.port()).await;
    stream.write_all(b"PING\r\n").await.expect("sent");
    assert_eq!(read(&mut stream).await, b"+PONG\r\n");
    proxy.reset();
    let end = timeout(LONG, stream.read(&mut [0; 8]))
        .await
        .expect("nothing came");
    assert_eq!(
        end.expect_err("no reset").kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn proxy_cuts_one_reply_in_the_middle() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let mut stream = raw(proxy.port()).await;
    proxy.cut_mid_reply();
    stream.write_all(b"PING\r\n").await.expect("sent");
    assert_eq!(read(&mut stream).await, b"+PO");
    assert_eq!(read(&mut stream).await, b"");

    let mut stream = raw(proxy.port()).await;
    stream.write_all(b"PING\r\n").await.expect("sent");
    assert_eq!(read(&mut stream).await, b"+PONG\r\n");
}

#[tokio::test]
async fn proxy_splits_replies() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let mut connection = connect(&proxy.url()).await;
    proxy.split(1);
    for _ in 0..20 {
        assert_eq!(ping(&mut connection).await.expect("PING failed"), "PONG");
    }
    proxy.split(3);
    let mut stream = raw(proxy.port()).await;
    stream.write_all(b"PING\r\n").await.expect("sent");
    let first = read(&mut stream).await;
    assert!(first.len() < 7, "{first:?} came in one piece");
}

#[tokio::test]
async fn dropped_proxy_closes_everything() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let port = proxy.port();
    let mut stream = raw(port).await;
    stream.write_all(b"PING\r\n").await.expect("sent");
    assert_eq!(read(&mut stream).await, b"+PONG\r\n");
    drop(proxy);
    assert_eq!(read(&mut stream).await, b"");
    // Not at once: a child that another test is starting holds copies of all sockets of this
    // process until it executes another program.
    let deadline = Instant::now() + LONG;
    while !refuses(port).await {
        assert!(Instant::now() < deadline, "the port is still open");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn half_open_connection_stays_open_and_redirect_leads_elsewhere() {
    let (first, second) = (RedisServer::start().await, RedisServer::start().await);
    let proxy = Proxy::start(first.port()).await;
    let mut old = raw(proxy.port()).await;
    old.write_all(b"PING\r\n").await.expect("sent");
    assert_eq!(read(&mut old).await, b"+PONG\r\n");
    proxy.half_open();
    sleep(SHORT / 10).await;
    old.write_all(b"PING\r\n").await.expect("sent");
    assert!(is_silent(&mut old).await, "nothing comes, not even an end");
    proxy.redirect(second.port());
    let mut fresh = connect(&proxy.url()).await;
    let () = redis::cmd("SET")
        .arg("where")
        .arg("second")
        .query_async(&mut fresh)
        .await
        .expect("set");
    let kept: Option<String> = redis::cmd("GET")
        .arg("where")
        .query_async(&mut second.connection().await)
        .await
        .expect("read");
    assert_eq!(kept.as_deref(), Some("second"));
    assert!(is_silent(&mut old).await);
    proxy.cut();
    let end = timeout(LONG, old.read(&mut [0; 64])).await.expect("an end");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

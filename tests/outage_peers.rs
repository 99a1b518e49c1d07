//! Limiters that end, are cut off, or send late heartbeats: what the others reserve for them, and
//! for how long.
//!
//! The test binary runs itself again as the processes that end.
#![cfg(feature = "redis")]

mod support;
#[path = "support/watch.rs"]
mod watch;

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use support::{Proxy, RedisServer};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep, sleep_until},
};
use tower_throttle::{Limiter, Quota, Scope};
use watch::{reason, until, until_recovered};

const SECOND: Duration = Duration::from_secs(1);
const PEERS: &str = "throttle:v1|{#}limiters";
const RATE: f64 = 200.0;
const CAP: f64 = 20.0;
const API: Scope = Quota::per_second(RATE).burst(CAP).scope("api");

/// Not a test: the entry point of the other processes.
#[test]
fn child() {
    let Ok(url) = std::env::var("THROTTLE_CHILD_URL") else {
        return;
    };
    let saturates = std::env::var("THROTTLE_CHILD_SECONDS").ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let limiter = connect(&url);
        let permit = limiter.try_acquire(API).await;
        println!("\nstarted {}", permit.is_ok());
        match saturates {
            Some(seconds) => {
                let duration = Duration::from_secs_f64(seconds.parse().expect("seconds"));
                println!("admitted {}", admitted(&limiter, duration).await.0);
            }
            None => std::future::pending::<()>().await,
        }
    });
}

/// Kills its process when it is dropped, also when the test panics.
struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    /// Returns after the process has acquired once.
    fn start(url: &str, seconds: Option<f64>) -> Self {
        let this = std::env::current_exe().expect("a path");
        let mut command = Command::new(this);
        command
            .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
            .env("THROTTLE_CHILD_URL", url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(seconds) = seconds {
            command.env("THROTTLE_CHILD_SECONDS", seconds.to_string());
        }
        let mut child = command.spawn().expect("this program starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let mut process = Self { child, out };
        process.read("started ");
        process
    }

    /// The rest of the line that starts with `start`.
    fn read(&mut self, start: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.out.read_line(&mut line).expect("a pipe");
            assert!(read > 0, "the process ended without a line {start:?}");
            if let Some(rest) = line.trim_end().strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }

    fn kill9(&mut self) {
        self.child.kill().expect("a child of this process");
        self.child.wait().expect("a child of this process");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A limiter whose timeouts are longer than the delays of a busy machine.
fn connect(url: &str) -> Limiter {
    let builder = Limiter::builder().redis(url).redis_timeout(2 * SECOND);
    builder.build().expect("a URL")
}

/// Admissions during about `duration`, and the exact duration in seconds.
async fn admitted(limiter: &Limiter, duration: Duration) -> (f64, f64) {
    let start = Instant::now();
    let mut admitted = 0.0;
    while start.elapsed() < duration {
        match limiter.acquire(API, SECOND / 10).await {
            Ok(_) => admitted += 1.0,
            Err(_) => sleep(SECOND / 100).await,
        }
    }
    (admitted, start.elapsed().as_secs_f64())
}

/// The part of the rate that this limiter gets in two seconds. The bucket is empty at first.
async fn part_of_rate(limiter: &Limiter) -> f64 {
    admitted(limiter, SECOND / 2).await;
    let (admitted, seconds) = admitted(limiter, 2 * SECOND).await;
    admitted / (RATE * seconds)
}

#[tokio::test(flavor = "multi_thread")]
async fn survivor_gets_the_full_limit_soon_after_a_process_is_killed() {
    let server = RedisServer::start().await;
    let limiter = connect(&server.url());
    let _ = limiter.bucket(&API).level().await;
    let mut process = Process::start(&server.url(), None);
    sleep(13 * SECOND / 2).await;
    process.kill9();
    let killed = Instant::now();
    sleep_until(killed + 5 * SECOND).await;
    assert_eq!(limiter.reserved(), 0.5);
    let meanwhile = part_of_rate(&limiter).await;
    sleep_until(killed + 19 * SECOND / 2).await;
    assert_eq!(limiter.reserved(), 0.0);
    let afterwards = part_of_rate(&limiter).await;
    println!("{meanwhile:.2} of the rate, then {afterwards:.2}");
    assert!(meanwhile < 0.65, "{meanwhile}: nothing was reserved");
    assert!(afterwards > 0.85, "{afterwards} of the rate");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_reserved_for_one_shot_processes() {
    let server = RedisServer::start().await;
    let limiter = connect(&server.url());
    let _ = limiter.bucket(&API).level().await;
    for _ in 0..15 {
        Process::start(&server.url(), None).kill9();
    }
    sleep(9 * SECOND / 2).await;
    let part = part_of_rate(&limiter).await;
    println!("{part:.2} of the rate");
    assert!(part > 0.85, "{part} of the rate");
}

#[tokio::test(flavor = "multi_thread")]
async fn third_run_in_a_row_gets_the_full_limit() {
    let server = RedisServer::start().await;
    for run in 1..=3 {
        let mut process = Process::start(&server.url(), Some(3.0));
        let admitted: f64 = process.read("admitted ").parse().expect("a number");
        let allowed = CAP + 3.0 * RATE;
        println!("run {run}: {admitted} of {allowed}");
        assert!(admitted > 0.85 * allowed, "run {run}: {admitted}");
        process.child.wait().expect("a child of this process");
        // The process has returned from `main` without deregistering.
        assert_eq!(heartbeats(&server).await, [], "run {run}");
    }
}

fn one_thread() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().expect("a runtime")
}

#[test]
fn limiter_deregisters_when_its_runtime_is_shut_down() {
    let watcher = one_thread();
    let server = watcher.block_on(RedisServer::start());
    let count = || watcher.block_on(heartbeats(&server)).len();
    let limiter = connect(&server.url());
    for round in 0..3 {
        let runtime = match round {
            0 => tokio::runtime::Runtime::new().expect("a runtime"),
            _ => one_thread(),
        };
        let _ = runtime.block_on(limiter.bucket(&API).level());
        assert_eq!(count(), 1, "round {round}");
        drop(runtime);
        assert_eq!(count(), 0, "round {round}");
    }
    // Dropped where no runtime is left to send the deregistration.
    let runtime = one_thread();
    runtime.block_on(async {
        let _ = limiter.bucket(&API).level().await;
        drop(limiter);
    });
    assert_eq!(count(), 1);
    drop(runtime);
    assert_eq!(count(), 0);
}

#[test]
fn shutdown_does_not_wait_for_a_redis_that_does_not_answer() {
    let watcher = one_thread();
    let server = watcher.block_on(RedisServer::start());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let limiter = connect(&server.url());
    let _ = runtime.block_on(limiter.bucket(&API).level());
    server.freeze();
    let start = watcher.block_on(async { Instant::now() });
    drop(runtime);
    let took = start.elapsed();
    server.thaw();
    println!("{took:?}");
    assert!(took < 5 * SECOND, "{took:?}");
}

/// The heartbeats in Redis: id and time in milliseconds on the server's clock, new peers included.
async fn heartbeats(server: &RedisServer) -> Vec<(String, f64)> {
    let all: Vec<(String, f64)> = server
        .command(&["ZRANGE", PEERS, "0", "-1", "WITHSCORES"])
        .await;
    all.into_iter().map(|(name, at)| (name, at.abs())).collect()
}

async fn now_ms(server: &RedisServer) -> f64 {
    let (seconds, us): (f64, f64) = server.command(&["TIME"]).await;
    seconds * 1e3 + us / 1e3
}

/// Both heartbeats are in the server's socket buffers when it thaws. Their senders timed out two
/// seconds earlier.
#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_in_flight_when_redis_froze_are_ignored_at_the_thaw() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let connect = |url: String| {
        let builder = Limiter::builder().redis(url).redis_timeout(SECOND / 4);
        builder.build().expect("a URL")
    };
    let (first, second) = (connect(server.url()), connect(proxy.url()));
    for limiter in [&first, &second] {
        let _ = limiter.bucket(&API).level().await;
    }
    until("both are counted", async || {
        heartbeats(&server).await.len() == 2
    })
    .await;
    let frozen_at = now_ms(&server).await;
    server.freeze();
    // Only heartbeats are in flight.
    until("both time out", async || {
        reason(&first).is_some() && reason(&second).is_some()
    })
    .await;
    proxy.refuse();
    sleep(2 * SECOND).await;
    server.thaw();
    until_recovered(&first).await;
    let late: Vec<_> = heartbeats(&server).await;
    let thawed: Vec<_> = late
        .iter()
        .filter(|(_, at)| *at > frozen_at + 1e3)
        .collect();
    println!("frozen at {frozen_at}: {late:?}");
    assert_eq!(thawed.len(), 1, "only the recovered limiter: {late:?}");
    assert!(reason(&second).is_some(), "cut off");
}

//! Several processes on one Redis server: together they keep one limit.
//!
//! The test binary starts itself as the other processes. Each reports its admissions.
#![cfg(feature = "redis")]

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use support::RedisServer;
use tokio::time::Instant;
use tower_throttle::{Limiter, Quota, Scope};

const CAPACITY: f64 = 10.0;
const RATE: f64 = 50.0;
/// Long enough for each task of eight processes to be admitted after all have requested.
const RUN: Duration = Duration::from_secs(11);
const TASKS: usize = 64;
const SCOPE: Scope = Quota::per_second(RATE).burst(CAPACITY).scope("hot");

/// The machine has two cores: the runs do not overlap.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// One admission, in microseconds on the clock of the machine.
#[derive(Clone, Copy, Debug)]
struct Admission {
    process: usize,
    requested: i64,
    admitted: i64,
}

#[derive(Clone, Copy, PartialEq)]
enum Callers {
    Waiting,
    Rejecting,
}

/// Not a test: the entry point of the other processes.
#[test]
fn child() {
    let Ok(url) = std::env::var("THROTTLE_CHILD_URL") else {
        return;
    };
    let waiting = std::env::var("THROTTLE_CHILD_MODE").is_ok_and(|mode| mode == "waiting");
    let offset: i64 = std::env::var("THROTTLE_CHILD_OFFSET_S")
        .ok()
        .and_then(|offset| offset.parse().ok())
        .unwrap_or(0);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(run_child(url, waiting, offset * 1_000_000));
}

/// The machine's clock, without the offset that this process sees.
#[allow(
    clippy::disallowed_methods,
    reason = "processes have no other clock in common"
)]
fn machine_us(offset_us: i64) -> i64 {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a clock after 1970");
    since_1970.as_micros() as i64 - offset_us
}

async fn run_child(url: String, waiting: bool, offset_us: i64) {
    // A busy test machine delays replies for longer than a service would accept.
    let limiter = Limiter::builder()
        .redis(url)
        .redis_timeout(Duration::from_secs(10))
        .build()
        .expect("a URL");
    let _ = limiter.bucket(&SCOPE).level().await;
    println!("\nready {}", machine_us(offset_us));
    // The start signal. The parent ends the process by closing the pipe.
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
    let end = Instant::now() + RUN;
    let admissions = Arc::new(Mutex::new(Vec::new()));
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (limiter, admissions) = (limiter.clone(), admissions.clone());
            tokio::spawn(tokio::time::timeout_at(end, async move {
                loop {
                    let requested = machine_us(offset_us);
                    let max_wait = if waiting { 3 * RUN } else { Duration::ZERO };
                    match limiter.acquire(SCOPE, max_wait).await {
                        Ok(permit) => {
                            assert!(!permit.is_degraded());
                            let admitted = machine_us(offset_us);
                            admissions
                                .lock()
                                .expect("no panic")
                                .push((requested, admitted));
                        }
                        Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                    }
                }
            }))
        })
        .collect();
    for task in tasks {
        let _: Result<(), _> = task.await.expect("no panic");
    }
    let mut out = std::io::stdout().lock();
    for (requested, admitted) in admissions.lock().expect("no panic").iter() {
        writeln!(out, "admitted {requested} {admitted}").expect("a pipe");
    }
    writeln!(out, "fallbacks {}", limiter.fallbacks()).expect("a pipe");
}

/// Kills its process when it is dropped, also when the test panics.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(url: &str, callers: Callers, offset_s: i64) -> Process {
    let this = std::env::current_exe().expect("a path");
    let mut command = if offset_s == 0 {
        Command::new(this)
    } else {
        let mut faked = Command::new("faketime");
        faked.arg("-f").arg(format!("{offset_s:+}s")).arg(this);
        faked
    };
    let mut child = command
        .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
        .env("THROTTLE_CHILD_URL", url)
        .env("THROTTLE_CHILD_OFFSET_S", offset_s.to_string())
        .env(
            "THROTTLE_CHILD_MODE",
            if callers == Callers::Waiting {
                "waiting"
            } else {
                "rejecting"
            },
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{error}: `faketime` is missing? ./scripts/test installs it")
        });
    let stdin = child.stdin.take();
    Process { child, stdin }
}

/// Runs one process per clock offset, and collects their reports.
fn run(url: &str, callers: Callers, offsets_s: &[i64]) -> Vec<Admission> {
    let mut processes: Vec<_> = offsets_s
        .iter()
        .map(|offset| spawn(url, callers, *offset))
        .collect();
    let mut outputs: Vec<_> = processes
        .iter_mut()
        .map(|process| BufReader::new(process.child.stdout.take().expect("piped")).lines())
        .collect();
    for output in &mut outputs {
        output
            .find(|line| line.as_ref().is_ok_and(|line| line.starts_with("ready ")))
            .expect("a child that starts")
            .expect("a pipe");
    }
    for process in &mut processes {
        let mut stdin = process.stdin.take().expect("piped");
        stdin.write_all(b"go\n").expect("a running child");
    }
    let mut admissions = Vec::new();
    for (process, output) in outputs.into_iter().enumerate() {
        for line in output {
            let line = line.expect("a pipe");
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["admitted", requested, admitted] => admissions.push(Admission {
                    process,
                    requested: requested.parse().expect("a number"),
                    admitted: admitted.parse().expect("a number"),
                }),
                ["fallbacks", count] => assert_eq!(count, "0", "Redis was available all the time"),
                _ => {}
            }
        }
    }
    admissions.sort_by_key(|admission| admission.admitted);
    admissions
}

/// The most admissions in any window of this length.
fn most_within(admissions: &[Admission], window_us: i64) -> usize {
    let mut first = 0;
    (0..admissions.len())
        .map(|last| {
            while admissions[last].admitted - admissions[first].admitted > window_us {
                first += 1;
            }
            last + 1 - first
        })
        .max()
        .unwrap_or(0)
}

fn check(name: &str, admissions: &[Admission]) {
    // From the first request: an admission is recorded a moment after it was granted.
    let first = admissions.iter().map(|admission| admission.requested).min();
    let last = admissions[admissions.len() - 1].admitted;
    let seconds = (last - first.expect("some admissions")) as f64 / 1e6;
    let allowed = CAPACITY + RATE * seconds;
    let total = admissions.len() as f64;
    println!(
        "{name}: {total} admitted in {seconds:.3} s, {allowed:.1} allowed, ratio {:.4}",
        total / allowed
    );
    assert!(total <= allowed, "{name}: over-admitted");
    assert!(seconds > 0.97 * RUN.as_secs_f64());
    assert!(total >= 0.97 * allowed, "{name}: under-admitted");
    for window_us in [100_000, 1_000_000, 5_000_000] {
        let most = most_within(admissions, window_us);
        let bound = CAPACITY + RATE * window_us as f64 / 1e6;
        println!("{name}: at most {most} in {window_us} us, {bound} allowed");
        // A scheduling delay may use a reservation late. The slack of one token is 20 ms.
        assert!(
            most as f64 <= bound + 1.0,
            "{name}: {most} in {window_us} us"
        );
    }
}

fn shares(admissions: &[Admission], processes: usize) -> Vec<usize> {
    let mut shares = vec![0; processes];
    for admission in admissions {
        shares[admission.process] += 1;
    }
    shares
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_waiting_processes_keep_one_limit_and_share_it_fairly() {
    let _alone = ALONE.lock().await;
    let server = RedisServer::start().await;
    let url = server.url();
    let admissions = tokio::task::spawn_blocking(move || run(&url, Callers::Waiting, &[0; 8]))
        .await
        .expect("no panic");
    check("waiting", &admissions);
    // Requests are served in order, so a process that starts earlier is admitted more often at
    // first. After that, each round of `8 * TASKS` grants admits each task once.
    let round = &admissions[admissions.len() - 8 * TASKS..];
    let shares = shares(round, 8);
    println!(
        "waiting: shares of the last {} grants {shares:?}",
        round.len()
    );
    for share in &shares {
        assert!(share.abs_diff(TASKS) * 10 <= TASKS, "{shares:?}");
    }
    // In the order of the requests, as far as they are further apart than the round trip to Redis.
    let mut overtaken = 0;
    for (index, early) in admissions.iter().enumerate() {
        for late in &admissions[index + 1..] {
            // `late` was admitted after `early`, but had requested 250 ms or more before it.
            overtaken += usize::from(late.requested + 250_000 < early.requested);
        }
    }
    assert_eq!(overtaken, 0, "a request was overtaken");
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_rejecting_processes_keep_one_limit() {
    let _alone = ALONE.lock().await;
    let server = RedisServer::start().await;
    let url = server.url();
    let admissions = tokio::task::spawn_blocking(move || run(&url, Callers::Rejecting, &[0; 8]))
        .await
        .expect("no panic");
    check("rejecting", &admissions);
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_of_the_processes_do_not_matter() {
    let _alone = ALONE.lock().await;
    let server = RedisServer::start().await;
    let url = server.url();
    let offsets = [0, 3_600, -3_600, 90];
    let admissions = tokio::task::spawn_blocking(move || run(&url, Callers::Waiting, &offsets))
        .await
        .expect("no panic");
    check("four clocks", &admissions);
    let shares = shares(&admissions, 4);
    println!("four clocks: shares {shares:?}");
}

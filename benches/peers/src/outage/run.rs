//! Starts Redis and the processes, kills and restarts Redis, and adds up the admitted tokens.

use std::{process::Stdio, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{sleep, timeout},
};

use crate::{report::Place, server::RedisServer, subjects::Limit};

/// The first argument of a child process.
pub const CHILD: &str = "--child";

pub(super) const PROCESSES: usize = 4;
/// Per limiter and process.
pub(super) const TASKS: usize = 8;
/// How long a task waits after a rejection.
pub(super) const PAUSE: Duration = Duration::from_millis(10);
/// 200 tokens/s with a burst of 40.
pub(super) const LIMIT: Limit = Limit {
    tokens: 40,
    per: Duration::from_millis(200),
};

pub(super) const STEP: Duration = Duration::from_millis(100);
/// Until the burst is spent and the limiters have counted each other. Not part of the picture.
const WARM_UP: Duration = Duration::from_secs(5);
const BEFORE: Duration = Duration::from_secs(4);
const DOWN: Duration = Duration::from_secs(6);
const AFTER: Duration = Duration::from_secs(6);
pub(super) const WHOLE: Duration =
    Duration::from_secs(WARM_UP.as_secs() + BEFORE.as_secs() + DOWN.as_secs() + AFTER.as_secs());

/// The time limit for a child process to start, and to report after the end.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The contents of `outage.json`. `throttle` and `naive` are the tokens that all processes together
/// admitted in each step.
#[derive(Debug, Deserialize, Serialize)]
pub struct Run {
    pub(super) processes: usize,
    pub(super) tasks: usize,
    pub(super) pause_ms: u64,
    /// Tokens/s.
    pub(super) rate: f64,
    /// Tokens.
    pub(super) burst: f64,
    pub(super) step_ms: u64,
    /// When Redis was killed and when it answered again, in seconds from the first step.
    pub(super) killed_s: f64,
    pub(super) back_s: f64,
    pub(super) throttle: Vec<u64>,
    pub(super) naive: Vec<u64>,
}

const JSON: &str = "outage.json";

impl Run {
    pub fn saved() -> Self {
        serde_json::from_str(&Place::Docs.read(JSON)).expect("outage.json is not a run")
    }

    pub fn save(&self) {
        let json = serde_json::to_string(self).expect("numbers");
        Place::Docs.write(JSON, &(json + "\n"));
    }
}

/// The monotonic clock in microseconds, which all processes of this machine share.
pub(super) fn now_us() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// Redis and the processes end when this future is dropped, also if it panics.
pub async fn run() -> Run {
    let mut server = RedisServer::start().await;
    let mut processes = Vec::new();
    for _ in 0..PROCESSES {
        processes.push(Process::start(&server.url()));
    }
    for process in &mut processes {
        assert_eq!(process.line(TIMEOUT).await, "ready");
    }
    eprintln!("running for {} s", WHOLE.as_secs());
    let start = now_us();
    for process in &mut processes {
        process.begin(start).await;
    }
    let since_start = || (now_us() - start) as f64 / 1e6;

    sleep(WARM_UP + BEFORE).await;
    server.kill9();
    let killed = since_start();
    sleep(DOWN).await;
    server.restart().await;
    let back = since_start();

    let mut sums = [Vec::new(), Vec::new()];
    for process in &mut processes {
        for sum in &mut sums {
            let counts = process.line(WHOLE + TIMEOUT).await;
            let counts: Vec<u64> = serde_json::from_str(&counts).expect("a list of counts");
            sum.resize(counts.len(), 0);
            for (sum, count) in sum.iter_mut().zip(counts) {
                *sum += count;
            }
        }
    }
    let skipped = (WARM_UP.as_millis() / STEP.as_millis()) as usize;
    let [throttle, naive] = sums.map(|sum| sum[skipped..].to_vec());
    let warm_up = WARM_UP.as_secs_f64();
    Run {
        processes: PROCESSES,
        tasks: TASKS,
        pause_ms: PAUSE.as_millis() as u64,
        rate: LIMIT.rate(),
        burst: f64::from(LIMIT.tokens),
        step_ms: STEP.as_millis() as u64,
        killed_s: killed - warm_up,
        back_s: back - warm_up,
        throttle,
        naive,
    }
}

/// A child process, killed when this value is dropped.
struct Process {
    _child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(url: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .args([CHILD, url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a child process does not start");
        Self {
            stdin: child.stdin.take().expect("stdin is a pipe"),
            stdout: BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines(),
            _child: child,
        }
    }

    async fn begin(&mut self, start: u64) {
        let line = format!("{start}\n");
        let written = self.stdin.write_all(line.as_bytes()).await;
        written.expect("a child process ended early");
    }

    async fn line(&mut self, limit: Duration) -> String {
        let line = timeout(limit, self.stdout.next_line()).await;
        let line = line.expect("a child process does not report");
        line.expect("stdout is text")
            .expect("a child process ended early")
    }
}

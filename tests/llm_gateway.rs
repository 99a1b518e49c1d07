//! Four processes stream the responses of a model through one Redis: requests and tokens per minute
//! in one acquisition, with costs that are known only at the end, and a third of the streams
//! cancelled halfway.
//!
//! The bounds. A request takes its estimate `e` when it is made, is admitted when its reservation
//! is due, and is corrected to `x` when its stream ends. A stream that was cut off is charged for
//! what it sent, but not less than `e`, since its full cost is unknown. What a stream returns is
//! available to the next request. What it cost above its estimate delays later requests, but no
//! request that has a reservation. So, counting tokens by the times of their reservations:
//!
//! - from the start to any reservation `T` seconds after it, `sum(x) <= capacity + rate * T + U`:
//!   `U` is what the admitted streams cost above their estimates, as far as that was reported after
//!   the last request of those that waited and were admitted;
//! - over any window of `w` seconds, `sum(x) <= capacity + rate * w + D + U`: `D` is what streams
//!   from before the window returned within it, `U` as above, of the streams admitted within it;
//! - and, once all is reported, the level is at most `capacity + rate * T - sum(x)`.
//!
//! Tokens have a slack of 100 ms of the rate: in windows for reservations that are used late, and
//! everywhere because processes do not know the exact time at which a correction reached Redis.
//! Requests are never corrected, and from the start have no slack.
//!
//! The test binary runs itself again as the other processes.
#![cfg(all(feature = "redis", feature = "http"))]

mod support;

use std::{
    convert::Infallible,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use http::{Request, Response};
use support::RedisServer;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_throttle::{Limiter, PermitHandle, Quota, RateLimitLayer, Scope};

const PROCESSES: u64 = 4;
const CALLERS: u64 = 16;
const RUN: Duration = Duration::from_secs(8);
const RPM: Scope = Quota::per_minute(2_400.0).burst(10.0).scope("llm:rpm");
const TPM: Scope = Quota::per_minute(120_000.0).burst(1_000.0).scope("llm:tpm");
/// The time of a correction in Redis is uncertain by this many seconds.
const EDGE: f64 = 0.1;
/// A reservation may be used this many seconds late.
const LATE: f64 = 0.1;
/// In the first half, requests are large, so that tokens are scarce. In the second half they are
/// small.
const LARGE: (f64, f64) = (50.0, 150.0);
const SMALL: (f64, f64) = (10.0, 40.0);

/// The request to the model.
#[derive(Clone, Copy)]
struct ModelRequest {
    estimate: f64,
    actual: f64,
    requested: i64,
}

/// The upstream end of a response. It always settles: the full cost, or, when it is cut off, what
/// was sent but not less than the estimate.
struct Answer {
    request: ModelRequest,
    handle: PermitHandle,
    sent: f64,
    granted: i64,
    trace: Arc<Mutex<Vec<String>>>,
}

impl Answer {
    async fn chunk(&mut self) {
        sleep(Duration::from_millis(10)).await;
        self.sent = (self.sent + 10.0).min(self.request.actual);
    }

    fn is_whole(&self) -> bool {
        self.sent >= self.request.actual
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let settled = if self.is_whole() {
            self.sent
        } else {
            self.sent.max(self.request.estimate)
        };
        self.handle.settle(settled);
        let (
            granted,
            ModelRequest {
                estimate,
                requested,
                ..
            },
        ) = (self.granted, self.request);
        let line = format!(
            "stream {requested} {granted} {estimate} {settled} {}",
            machine_us()
        );
        self.trace.lock().expect("no panic").push(line);
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "processes have no other clock in common"
)]
fn machine_us() -> i64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_1970.expect("a clock after 1970").as_micros() as i64
}

/// Not a test: the entry point of the other processes.
#[test]
fn child() {
    let Ok(url) = std::env::var("GATEWAY_CHILD_URL") else {
        return;
    };
    let seed = std::env::var("GATEWAY_CHILD_SEED").expect("set by the parent");
    let seed = seed.parse().expect("a number");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(run_child(&url, seed));
}

async fn run_child(url: &str, seed: u64) {
    // A long timeout: this test is not about outages.
    let builder = Limiter::builder().redis(url).replicas(PROCESSES as u32);
    let limiter = builder.redis_timeout(Duration::from_secs(2)).build();
    let limiter = limiter.expect("a URL");
    let _ = limiter.bucket(&TPM).level().await;
    println!("\nready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
    let trace = Arc::new(Mutex::new(vec![format!("began {}", machine_us())]));
    let gateway = {
        let trace = trace.clone();
        ServiceBuilder::new()
            .layer(
                RateLimitLayer::new(&limiter, |req: &Request<ModelRequest>| {
                    [RPM, TPM.cost(req.body().estimate)]
                })
                .max_wait(RUN)
                .expose_permit(),
            )
            .service(service_fn(move |req: Request<ModelRequest>| {
                let handle = req.extensions().get::<PermitHandle>();
                let answer = Answer {
                    request: *req.body(),
                    handle: handle.expect("an exposed permit").clone(),
                    sent: 0.0,
                    granted: machine_us(),
                    trace: trace.clone(),
                };
                async move { Ok::<_, Infallible>(Response::new(answer)) }
            }))
    };
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut gateway = gateway.clone();
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(1_000).wrapping_add(caller));
        callers.spawn(async move {
            while start.elapsed() < RUN {
                let (least, most) = if start.elapsed() < RUN / 2 {
                    LARGE
                } else {
                    SMALL
                };
                let estimate = (least + (most - least) * rng.f64()).round();
                let actual = (estimate * (0.3 + 1.4 * rng.f64())).round();
                let request = Request::new(ModelRequest {
                    estimate,
                    actual,
                    requested: machine_us(),
                });
                let ready = gateway.ready().await.expect("always ready");
                let Ok(response) = ready.call(request).await else {
                    continue;
                };
                let mut answer = response.into_body();
                let cancelled = rng.f64() < 1.0 / 3.0;
                while !(answer.is_whole() || cancelled && answer.sent >= actual / 2.0) {
                    answer.chunk().await;
                }
            }
        });
    }
    callers.join_all().await;
    assert_eq!(limiter.fallbacks(), 0, "Redis was available all the time");
    // After all corrections, in the order in which they were queued.
    let _ = limiter.bucket(&TPM).level().await;
    let mut out = std::io::stdout().lock();
    for line in trace.lock().expect("no panic").iter() {
        writeln!(out, "{line}").expect("a pipe");
    }
    writeln!(out, "done").expect("a pipe");
}

/// Kills its process when it is dropped, also when the test panics.
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(url: &str, seed: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
            .env("GATEWAY_CHILD_URL", url)
            .env("GATEWAY_CHILD_SEED", seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program");
        Self {
            stdin: child.stdin.take().expect("piped"),
            lines: BufReader::new(child.stdout.take().expect("piped")).lines(),
            child,
        }
    }

    /// The lines before this one.
    fn until(&mut self, end: &str) -> Vec<String> {
        let mut before = Vec::new();
        for line in &mut self.lines {
            let line = line.expect("a pipe");
            if line == end {
                return before;
            }
            before.push(line);
        }
        panic!("no {end:?} after {before:?}");
    }
}

/// One stream: times in seconds since the first process began.
#[derive(Clone, Copy, Debug)]
struct Stream {
    requested: f64,
    granted: f64,
    estimate: f64,
    settled: f64,
    at: f64,
}

impl Stream {
    fn above(&self) -> f64 {
        (self.settled - self.estimate).max(0.0)
    }

    /// The time of its request, if it had a reservation for its tokens. Small requests wait for the
    /// limit of requests, and may then take tokens that were returned, ahead of all debts.
    fn waited(&self) -> Option<f64> {
        let waited = self.granted - self.requested > 0.05;
        (waited && self.estimate >= LARGE.0).then_some(self.requested)
    }

    fn below(&self) -> f64 {
        (self.estimate - self.settled).max(0.0)
    }
}

/// What these streams, in the order of their admission, cost above their estimates as far as no
/// waiter of them had to wait for it.
fn not_waited_for(streams: &[Stream], waited: f64) -> f64 {
    let late = streams.iter().filter(|stream| stream.at >= waited - EDGE);
    late.map(Stream::above).sum()
}

/// The time of the last request of those that waited, for each stream and those before it. Those
/// that never waited found tokens, whatever was reported before.
fn last_requested(streams: &[Stream]) -> Vec<f64> {
    let mut last = f64::NEG_INFINITY;
    let each = streams.iter().map(|stream| {
        last = stream
            .waited()
            .map_or(last, |requested| requested.max(last));
        if last.is_finite() {
            last
        } else {
            stream.granted
        }
    });
    each.collect()
}

/// The streams of all processes, ordered by their grants, and when the first process began.
fn run(url: &str, seed: u64) -> (Vec<Stream>, i64) {
    let mut processes: Vec<_> = (0..PROCESSES)
        .map(|n| Process::start(url, seed.wrapping_add(n)))
        .collect();
    for process in &mut processes {
        process.until("ready");
    }
    for process in &mut processes {
        process.stdin.write_all(b"go\n").expect("a running child");
    }
    let lines: Vec<_> = processes
        .iter_mut()
        .flat_map(|process| process.until("done"))
        .collect();
    let words = |kind: &str| -> Vec<Vec<f64>> {
        let of_kind = lines.iter().filter_map(|line| line.strip_prefix(kind));
        let number = |word: &str| word.parse().expect("a number");
        of_kind
            .map(|line| line.split(' ').map(number).collect())
            .collect()
    };
    let began = words("began ")
        .iter()
        .map(|word| word[0])
        .fold(f64::MAX, f64::min);
    let mut streams: Vec<_> = words("stream ")
        .iter()
        .map(|words| Stream {
            requested: (words[0] - began) / 1e6,
            granted: (words[1] - began) / 1e6,
            estimate: words[2],
            settled: words[3],
            at: (words[4] - began) / 1e6,
        })
        .collect();
    streams.sort_by(|a, b| a.granted.total_cmp(&b.granted));
    (streams, began as i64)
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_keep_both_limits_after_settling() {
    let seed = std::env::var("THROTTLE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or(machine_us() as u64);
    println!("THROTTLE_SEED={seed}");
    let server = RedisServer::start().await;
    let url = server.url();
    let (streams, began) = tokio::task::spawn_blocking(move || run(&url, seed))
        .await
        .expect("no panic");
    let limiter = Limiter::redis(&server.url()).expect("a URL");
    let level = limiter.bucket(&TPM).level().await.unwrap();
    let elapsed = (machine_us() - began) as f64 / 1e6;

    let last = streams.last().expect("some streams").granted;
    let cut = streams.iter().filter(|s| s.settled == s.estimate).count();
    let (requests, tokens) = (RPM.quota(), TPM.quota());
    let count = streams.len() as f64;
    let estimated: f64 = streams.iter().map(|stream| stream.estimate).sum();
    let settled: f64 = streams.iter().map(|stream| stream.settled).sum();
    let requests_allowed = requests.capacity() + requests.rate() * last;
    let tokens_allowed = tokens.capacity() + tokens.rate() * last;
    println!(
        "{count} requests in {last:.2} s, {cut} settled by their estimates; {requests_allowed:.1} \
         allowed: {:.4}",
        count / requests_allowed
    );
    println!(
        "{settled} tokens ({estimated} estimated), {tokens_allowed:.0} allowed: {:.4}",
        settled / tokens_allowed
    );
    assert!(count <= requests_allowed);
    let most = tokens.capacity() + tokens.rate() * elapsed - settled;
    println!(
        "level at the end {level:.1}, at most {:.1}",
        most.min(tokens.capacity())
    );
    assert!(level <= most.min(tokens.capacity()) + 1e-6);

    check_from_the_start(&streams);
    for window in [0.25, 1.0, 3.0] {
        check_windows(&streams, window);
    }
    // Each half has its own scarce limit, which is used.
    let half = RUN.as_secs_f64() / 2.0;
    let early = streams.iter().filter(|stream| stream.granted < half);
    let late = streams.iter().filter(|stream| stream.granted >= half + 3.0);
    let used: f64 = early.map(|stream| stream.settled).sum();
    let tokens_used = used / (tokens.capacity() + tokens.rate() * half);
    let requests_used = late.count() as f64 / (requests.rate() * (last - half - 3.0));
    println!("used of the scarce one: {tokens_used:.3} tokens, then {requests_used:.3} requests");
    assert!(tokens_used >= 0.8, "{tokens_used}");
    assert!(requests_used >= 0.6, "{requests_used}");
}

/// Checks all tokens granted up to each grant, from the full bucket at the start.
fn check_from_the_start(streams: &[Stream]) {
    let (requests, tokens) = (RPM.quota(), TPM.quota());
    let requested = last_requested(streams);
    let (mut used, mut least_slack, mut most_above) = (0.0, f64::INFINITY, 0.0);
    for (index, last) in streams.iter().enumerate() {
        used += last.settled;
        let above = not_waited_for(&streams[..=index], requested[index]);
        most_above = f64::max(most_above, above);
        let allowed = tokens.capacity() + tokens.rate() * last.granted;
        least_slack = f64::min(least_slack, allowed + above - used);
        let allowed = requests.capacity() + requests.rate() * last.granted;
        assert!((index + 1) as f64 <= allowed, "{index} at {}", last.granted);
    }
    println!(
        "from the start: at most {most_above} tokens not waited for, least slack {least_slack:.0}"
    );
    assert!(least_slack >= -TPM.quota().rate() * EDGE, "{least_slack}");
}

fn check_windows(streams: &[Stream], window: f64) {
    let (requests, tokens) = (RPM.quota(), TPM.quota());
    let requested = last_requested(streams);
    let (mut most_requests, mut most, mut least_slack) = (0, 0.0f64, f64::INFINITY);
    for (first, begin) in streams.iter().enumerate() {
        let (begin, end) = (begin.granted, begin.granted + window);
        let count = streams[first..].partition_point(|stream| stream.granted <= end);
        let within = &streams[first..first + count];
        let used: f64 = within.iter().map(|stream| stream.settled).sum();
        let above = not_waited_for(within, requested[first + count - 1]);
        let returned: f64 = streams[..first]
            .iter()
            .filter(|s| (begin - EDGE..end + EDGE).contains(&s.at))
            .map(Stream::below)
            .sum();
        let allowed = tokens.capacity() + tokens.rate() * (window + LATE);
        let slack = allowed + above + returned - used;
        most_requests = most_requests.max(within.len());
        most = most.max(used);
        least_slack = least_slack.min(slack);
    }
    let requests_allowed = requests.capacity() + requests.rate() * window;
    println!(
        "in {window} s at most {most_requests} requests, {requests_allowed} allowed; at most {most} \
         tokens, {} allowed; least slack under the bound with corrections {least_slack:.0}",
        tokens.capacity() + tokens.rate() * window,
    );
    assert!(most_requests as f64 <= requests_allowed + requests.rate() * LATE);
    assert!(least_slack >= 0.0, "{least_slack} in {window} s");
}

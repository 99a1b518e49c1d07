//! An upstream that answers 429 to one of several processes: all processes pause, then continue at
//! the rate.
//!
//! The test binary runs itself again as the other processes. The upstream is in this process, and
//! records all requests on one clock.
#![cfg(all(feature = "redis", feature = "learn"))]

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    response::{AppendHeaders, IntoResponse, Response},
};
use support::RedisServer;
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_throttle::{Limiter, Quota, RateLimitLayer, Scope, upstream::Upstream};

const RATE: f64 = 100.0;
const CAPACITY: f64 = 5.0;
const SCOPE: Scope = Quota::per_second(RATE).burst(CAPACITY).scope("upstream");
const PAUSE: Duration = Duration::from_secs(2);
/// The number of callers of each process, and whether they repeat. The processes start in this
/// order. The first request of the second one is rejected: then the last process, whose
/// reservations are next, has only waiters, and observes the pause only by checking for it.
const PROCESSES: [(usize, bool); 4] = [(100, false), (16, true), (16, true), (250, false)];
const REJECTED: usize = 1;

/// Not a test: the entry point of the other processes.
#[test]
fn child() {
    let Ok(callers) = std::env::var("UPSTREAM_CHILD_CALLERS") else {
        return;
    };
    let word = |name| std::env::var(name).expect("set by the parent");
    let callers = callers.parse().expect("a number");
    let again = word("UPSTREAM_CHILD_AGAIN") == "true";
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(run_child(
            &word("UPSTREAM_CHILD_REDIS"),
            &word("UPSTREAM_CHILD_URL"),
            callers,
            again,
        ));
}

async fn run_child(redis: &str, url: &str, callers: usize, again: bool) {
    // A long timeout: this test is not about outages.
    let limiter = Limiter::builder()
        .redis(redis)
        .redis_timeout(Duration::from_secs(2))
        .build()
        .expect("a URL");
    let _ = limiter.bucket(&SCOPE).level().await;
    println!("\nready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
    let client = ServiceBuilder::new()
        .layer(
            RateLimitLayer::new(&limiter, SCOPE)
                .max_wait(Duration::from_secs(30))
                .learn_from(
                    Upstream::retry_after().jitter(0.0),
                    |res: &reqwest::Response| (res.status(), res.headers()),
                ),
        )
        .service(reqwest::Client::new());
    let url: reqwest::Url = url.parse().expect("a URL");
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (mut client, url) = (client.clone(), url.clone());
        tasks.spawn(async move {
            loop {
                let request = reqwest::Request::new(reqwest::Method::GET, url.clone());
                let sent = async { client.ready().await?.call(request).await };
                // The parent has ended, or reports the missing requests.
                if sent.await.is_err() || !again {
                    return;
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(limiter.fallbacks(), 0);
    // Until the parent has recorded enough.
    line.clear();
    let _ = std::io::stdin().read_line(&mut line);
}

/// Kills its process when it is dropped, also when the test panics.
struct Process {
    child: Child,
    stdin: ChildStdin,
}

impl Process {
    fn start(redis: &str, url: &str, (callers, again): (usize, bool)) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
            .env("UPSTREAM_CHILD_CALLERS", callers.to_string())
            .env("UPSTREAM_CHILD_AGAIN", again.to_string())
            .env("UPSTREAM_CHILD_REDIS", redis)
            .env("UPSTREAM_CHILD_URL", url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program");
        let stdin = child.stdin.take().expect("piped");
        Self { child, stdin }
    }

    fn until_ready(&mut self) {
        let lines = BufReader::new(self.child.stdout.take().expect("piped")).lines();
        let mut lines = lines.map(|line| line.expect("a pipe"));
        assert!(lines.any(|line| line == "ready"), "a child that starts");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The requests recorded by the upstream: the time and the process.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(Instant, usize)>>>);

impl Seen {
    fn all(&self) -> Vec<(Instant, usize)> {
        self.0.lock().expect("no panic").clone()
    }

    /// The index of the rejected request.
    fn rejected(&self) -> Option<usize> {
        self.all().iter().position(|(_, from)| *from == REJECTED)
    }
}

async fn answer(State(seen): State<Seen>, request: Request) -> Response {
    let process = request.uri().path().trim_start_matches('/').parse();
    let from = process.expect("a number");
    let is_first = {
        let mut seen = seen.0.lock().expect("no panic");
        let is_known = seen.iter().any(|(_, other)| *other == from);
        seen.push((Instant::now(), from));
        !is_known
    };
    if is_first && from == REJECTED {
        let header = AppendHeaders([("retry-after", "2")]);
        (StatusCode::TOO_MANY_REQUESTS, header, "slow down").into_response()
    } else {
        "fine".into_response()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_processes_pause_together_and_resume_at_the_rate() {
    let server = RedisServer::start().await;
    let seen = Seen::default();
    let app = Router::new().fallback(answer).with_state(seen.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });

    let mut processes: Vec<_> = PROCESSES
        .iter()
        .enumerate()
        .map(|(n, callers)| {
            Process::start(&server.url(), &format!("http://{address}/{n}"), *callers)
        })
        .collect();
    let mut processes = tokio::task::spawn_blocking(move || {
        processes.iter_mut().for_each(Process::until_ready);
        processes
    })
    .await
    .expect("no panic");
    for process in &mut processes {
        process.stdin.write_all(b"go\n").expect("a running child");
        // By then its callers have requested. The first hundred reservations take a second.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    let enough = PAUSE + Duration::from_secs(2);
    let deadline = Instant::now() + Duration::from_secs(30);
    let (nth, rejected) = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let rejected = seen.rejected().map(|nth| (nth, seen.all()[nth].0));
        match rejected {
            Some((nth, at)) if at.elapsed() > enough => break (nth, at),
            _ => assert!(Instant::now() < deadline, "{} were sent", seen.all().len()),
        }
    };
    let seen = seen.all();
    drop(processes);

    let since = |at: Instant| at.saturating_duration_since(rejected);
    let later = seen[nth + 1..].iter().map(|&(at, from)| (since(at), from));
    let (in_hold, after): (Vec<_>, Vec<_>) = later.partition(|(at, _)| *at < PAUSE);
    let last = in_hold.iter().map(|(at, _)| *at).max().unwrap_or_default();
    println!(
        "after the rejection: {} more, the last after {:.1} ms (50 ms is {})",
        in_hold.len(),
        last.as_secs_f64() * 1e3,
        if last <= Duration::from_millis(50) {
            "kept"
        } else {
            "NOT kept"
        },
    );
    assert!(
        last <= Duration::from_millis(150),
        "a process continued to send"
    );

    let (first, _) = after.first().expect("requests continue");
    let mut spread = [0; 15];
    for (at, _) in &after {
        let tenth = (*at - PAUSE).as_millis() / 100;
        if let Some(count) = spread.get_mut(tenth as usize) {
            *count += 1;
        }
    }
    let mut of_each = [0; PROCESSES.len()];
    for (_, from) in &after {
        of_each[*from] += 1;
    }
    println!(
        "the first {:.1} ms after the pause; per 100 ms, {} at the rate: {spread:?}; of each \
         process {of_each:?}",
        (*first - PAUSE).as_secs_f64() * 1e3,
        RATE / 10.0,
    );
    assert!(*first <= PAUSE + Duration::from_millis(500));
    // Requests up to 100 ms late may coincide with those that are on time.
    for count in spread {
        assert!(
            f64::from(count) <= 2.0 * RATE / 10.0 + 2.0,
            "a herd: {spread:?}"
        );
    }
    let sum: u32 = spread.iter().sum();
    let allowed = RATE * 1.5;
    assert!(
        f64::from(sum) <= allowed + 1.0,
        "{sum} of {allowed}: a burst"
    );
    assert!(
        f64::from(sum) >= 0.8 * allowed,
        "{sum} of {allowed}: too little"
    );
    assert!(of_each[1..].iter().all(|count| *count > 0), "{of_each:?}");
}

//! One of the processes under load: 32 tasks on four scopes.

use std::{
    io::{BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use serde_json::{Value, json};
use tower_throttle::{Fallback, Health, Limiter, Quota, Reason, Rejected, Scope, Share};

use super::record::{Outcome, Record, now_us};

pub(crate) const CAPACITY: f64 = 100.0;
pub(crate) const RATE: f64 = 200.0;
/// The tasks of each scope in each process.
pub(crate) const TASKS: usize = 8;
/// The `max_wait` of the tasks that wait.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(2);

const QUOTA: Quota = Quota::per_second(RATE).burst(CAPACITY);

/// The scope, whether its tasks wait, and its fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) waits: bool,
    pub(crate) strict: bool,
}

pub(crate) const SCOPES: [Kind; 4] = [
    Kind {
        name: "rejecting",
        waits: false,
        strict: false,
    },
    Kind {
        name: "waiting",
        waits: true,
        strict: false,
    },
    Kind {
        name: "rejecting, strict",
        waits: false,
        strict: true,
    },
    Kind {
        name: "waiting, strict",
        waits: true,
        strict: true,
    },
];

const VARIABLE: &str = "THROTTLE_FAULTS_CHILD";

/// The tokens that each process may lease, from `THROTTLE_LEASE`. Defaults to none.
pub(crate) fn lease() -> f64 {
    let lease = std::env::var("THROTTLE_LEASE").ok();
    lease.map_or(0.0, |tokens| tokens.parse().expect("a number of tokens"))
}

/// The instructions for a process.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) url: String,
    /// The expected number of processes, until Redis has counted them.
    pub(crate) replicas: u32,
    /// Replaces the fallbacks of the scopes.
    pub(crate) policy: Option<Fallback>,
    /// Replaces the default, in seconds.
    pub(crate) reserve_for: Option<u64>,
}

impl Order {
    pub(crate) fn from_env() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        let value: Value = serde_json::from_str(&text).expect("an order from `to_env`");
        Some(Self {
            url: value["url"].as_str().expect("a URL").to_owned(),
            replicas: value["replicas"].as_u64().expect("a number") as u32,
            policy: match value["policy"].as_str() {
                Some("open") => Some(Fallback::FailOpen),
                Some("closed") => Some(Fallback::FailClosed),
                _ => None,
            },
            reserve_for: value["reserve_for"].as_u64(),
        })
    }

    /// The environment variable that makes a process a child, and its value.
    pub(crate) fn to_env(&self) -> (&'static str, String) {
        let policy = match self.policy {
            Some(Fallback::FailOpen) => "open",
            Some(Fallback::FailClosed) => "closed",
            _ => "",
        };
        let value = json!({
            "url": self.url,
            "replicas": self.replicas,
            "policy": policy,
            "reserve_for": self.reserve_for,
        });
        (VARIABLE, value.to_string())
    }
}

fn scope(kind: Kind, policy: Option<Fallback>) -> Scope {
    let scope = Scope::new(kind.name, QUOTA);
    match policy {
        Some(policy) => scope.fallback(policy),
        None if kind.strict => scope.fallback(Fallback::StrictShare(Share::Auto)),
        None => scope,
    }
}

/// Runs until its standard input ends.
pub(crate) fn run(order: Order) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(load(order));
}

async fn load(order: Order) {
    let (records, queue) = mpsc::channel();
    let writer = std::thread::spawn(move || write(&queue));
    let mut builder = Limiter::builder()
        .redis(&order.url)
        .replicas(order.replicas)
        .lease(lease());
    if let Some(seconds) = order.reserve_for {
        builder = builder.reserve_for(Duration::from_secs(seconds));
    }
    let limiter = builder.build().expect("a URL");
    let _ = limiter.bucket(&scope(SCOPES[0], None)).level().await;
    tokio::spawn(watch(limiter.clone(), records.clone()));
    println!("ready");
    read_line().await.expect("a start signal");
    let ends = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for (index, kind) in SCOPES.into_iter().enumerate() {
        for _ in 0..TASKS {
            let caller = Caller {
                limiter: limiter.clone(),
                scope: scope(kind, order.policy),
                index,
                kind,
                records: records.clone(),
                ends: ends.clone(),
            };
            tasks.push(tokio::spawn(caller.run()));
        }
    }
    let more = read_line().await;
    assert_eq!(more, None, "no more input than the end");
    ends.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no panic");
    }
    limiter.deregister().await;
    drop((records, limiter));
    // The watching task holds a sender, and ends with the limiter.
    writer.join().expect("no panic");
}

async fn read_line() -> Option<String> {
    let read = || std::io::stdin().lines().next()?.ok();
    tokio::task::spawn_blocking(read).await.expect("no panic")
}

struct Caller {
    limiter: Limiter,
    scope: Scope,
    index: usize,
    kind: Kind,
    records: mpsc::Sender<Record>,
    ends: Arc<AtomicBool>,
}

impl Caller {
    async fn run(self) {
        while !self.ends.load(Ordering::Relaxed) {
            let requested = now_us();
            let result = if self.kind.waits {
                self.limiter.acquire(&self.scope, MAX_WAIT).await
            } else {
                self.limiter.try_acquire(&self.scope).await
            };
            let took = now_us() - requested;
            let outcome = match &result {
                Ok(permit) if permit.is_degraded() => Outcome::AdmittedByMemory,
                Ok(_) => Outcome::Admitted,
                Err(rejected) => outcome_of(rejected),
            };
            let record = Record::Acquired {
                scope: self.index,
                requested,
                took,
                outcome,
            };
            self.records.send(record).expect("the writer is running");
            if !outcome.is_admitted() || outcome == Outcome::AdmittedByMemory {
                // A short delay before the next request, longer where requests are rejected, leaves
                // time for the other processes.
                let pause = if outcome.is_admitted() { 1 } else { 10 };
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
    }
}

fn outcome_of(rejected: &Rejected) -> Outcome {
    match rejected.reason() {
        Reason::Limited if rejected.is_degraded() => Outcome::RejectedByMemory,
        Reason::Limited => Outcome::Rejected,
        Reason::Unavailable => Outcome::Unavailable,
        _ => Outcome::Impossible,
    }
}

async fn watch(limiter: Limiter, records: mpsc::Sender<Record>) {
    let mut changes = limiter.health_changes();
    drop(limiter);
    loop {
        let degraded = matches!(*changes.borrow_and_update(), Health::Degraded { .. });
        let record = Record::Health {
            at: now_us(),
            degraded,
        };
        if records.send(record).is_err() || changes.changed().await.is_err() {
            return;
        }
    }
}

/// Runs in a thread of its own, so that a slow reader delays no task. Flushes often, so that little
/// is lost when the process is killed.
fn write(queue: &mpsc::Receiver<Record>) {
    let mut out = BufWriter::new(std::io::stdout());
    let mut open = true;
    while open {
        std::thread::sleep(Duration::from_millis(20));
        loop {
            match queue.try_recv() {
                Ok(record) => writeln!(out, "{record}").expect("a reader"),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        out.flush().expect("a reader");
    }
}

//! The load, and its usual loop: a number of tasks, each of which sends a request when the last one
//! is decided.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep},
};

use crate::{
    sample::{Mark, Meter, Sample, cpu, histogram},
    server::Probe,
    subjects::Keys,
};

/// A limiter under load. Each task has a clone.
pub trait Subject: Clone + Send + Sync + 'static {
    /// Whether it decides without I/O. The loop must then yield explicitly.
    const IN_MEMORY: bool = false;

    /// Requests one token. Returns whether it is admitted.
    fn take(&mut self, scope: usize) -> impl Future<Output = bool> + Send;

    /// Decisions made without Redis because of a failure, if the limiter counts them.
    fn failures(&self) -> u64 {
        0
    }
}

/// Operations between two yields of an in-memory loop, which would otherwise starve the timers.
const YIELD: u32 = 64;

#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub tasks: usize,
    pub scopes: Scopes,
    pub arrivals: Arrivals,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub enum Arrivals {
    /// Each task sends the next one when the last one is decided.
    Closed,
    /// Each task sends one in this time.
    Each(Duration),
    /// At random at this rate per second, each in a task of its own.
    Open(f64),
}

/// Which scopes are requested.
#[derive(Clone, Copy, Debug)]
pub enum Scopes {
    /// One of so many, at random.
    Among(usize),
    /// Each time one that was not requested before.
    Unseen,
}

impl Load {
    pub fn new(tasks: usize, scopes: usize) -> Self {
        Self {
            tasks,
            scopes: Scopes::Among(scopes),
            arrivals: Arrivals::Closed,
        }
    }

    /// The keys of its scopes.
    pub fn keys(self) -> Keys {
        match self.scopes {
            Scopes::Among(scopes) => Keys::new(scopes),
            Scopes::Unseen => Keys::unseen(),
        }
    }
}

impl Scopes {
    pub fn next(self, random: &mut Random) -> usize {
        static UNSEEN: AtomicUsize = AtomicUsize::new(0);
        match self {
            Self::Among(scopes) => random.below(scopes),
            Self::Unseen => UNSEEN.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// A cheap random number generator (xorshift), good enough to choose scopes.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn step(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.step()) * n as u128) >> 64) as usize
    }

    /// The time to the next of events that occur at random at this rate, per second.
    pub fn next_arrival(&mut self, rate: f64) -> Duration {
        let uniform = (self.step() >> 11) as f64 / (1_u64 << 53) as f64;
        Duration::from_secs_f64(-(1.0 - uniform).ln() / rate)
    }
}

/// Blocks this thread, which must not be one of the runtime's: their timers are only accurate to
/// 1 ms.
#[allow(clippy::disallowed_methods, reason = "for threads without a runtime")]
pub fn block_until(due: Instant) {
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
}

/// One round: the tasks start, ramp up, are measured for `slice`, and end.
pub async fn round<S: Subject>(
    subject: &S,
    load: Load,
    probe: Option<&Probe>,
    slice: Duration,
) -> Sample {
    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..load.tasks {
        tasks.spawn(run_task(subject.clone(), load, task, stop.clone()));
    }
    // The slowest limiter needs this long to decide one request of each task.
    let ramp = Duration::from_millis(40) + Duration::from_micros(15) * load.tasks as u32;
    sleep(ramp).await;
    let mark = Mark::begin(probe).await;
    sleep(slice).await;
    let mut sample = mark.end(probe).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(admitted) = tasks.join_next().await {
        sample.total_admitted += admitted.expect("a task panicked");
    }
    sample.total_seconds = started.elapsed().as_secs_f64();
    sample
}

async fn run_task<S: Subject>(
    mut subject: S,
    load: Load,
    task: usize,
    stop: Arc<AtomicBool>,
) -> u64 {
    let mut random = Random::new(task as u64);
    let mut pace = match load.arrivals {
        Arrivals::Each(time) => Some(interval(time)),
        _ => None,
    };
    let timed_each = match (S::IN_MEMORY, load.tasks) {
        (true, _) => 64,
        (false, ..=64) => 1,
        (false, _) => 16,
    };
    let (mut n, mut total) = (task as u32, 0);
    let (mut ops, mut admitted) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let scope = load.scopes.next(&mut random);
        let start = n.is_multiple_of(timed_each).then(Instant::now);
        let granted = u64::from(subject.take(scope).await);
        n = n.wrapping_add(1);
        total += granted;
        ops += 1;
        admitted += granted;
        if let Some(start) = start {
            Meter::with(|meter| meter.time(start.elapsed()));
        }
        if !S::IN_MEMORY || n.is_multiple_of(YIELD) {
            Meter::with(|meter| meter.count(ops, admitted));
            (ops, admitted) = (0, 0);
            if S::IN_MEMORY {
                tokio::task::yield_now().await;
            }
        }
    }
    total
}

/// Requests one token from each of `scopes` scopes, with 1,024 tasks.
pub async fn fill<S: Subject>(subject: &S, scopes: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let tasks = (0..1_024).map(|_| {
        let (mut subject, next) = (subject.clone(), next.clone());
        async move {
            loop {
                let scope = next.fetch_add(1, Ordering::Relaxed);
                if scope >= scopes {
                    return;
                }
                subject.take(scope).await;
            }
        }
    });
    tasks.collect::<JoinSet<()>>().join_all().await;
}

/// One round without a runtime: `threads` loops over a limiter that is ready at its first poll.
pub fn tight<S: Subject>(subject: &S, threads: usize, scopes: usize, slice: Duration) -> Sample {
    let before = cpu();
    let started = Instant::now();
    let looped = |thread: usize| {
        let mut subject = subject.clone();
        let mut random = Random::new(thread as u64);
        let (mut ops, mut admitted) = (0, 0);
        let start = Instant::now();
        loop {
            for _ in 0..YIELD {
                let decided = subject.take(random.below(scopes)).now_or_never();
                admitted += u64::from(decided.expect("it does not wait"));
            }
            ops += u64::from(YIELD);
            let elapsed = start.elapsed();
            if elapsed >= slice {
                return (ops, admitted, elapsed.as_secs_f64());
            }
        }
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || looped(thread)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|result| result.expect("a thread panicked"))
            .collect()
    });
    let ops = results.iter().map(|(ops, ..)| ops).sum();
    let admitted = results.iter().map(|(_, admitted, _)| admitted).sum();
    let seconds = results.iter().map(|(.., seconds)| seconds).sum::<f64>() / threads as f64;
    Sample {
        ops,
        admitted,
        seconds,
        cpu: cpu() - before,
        redis_cpu: 0.0,
        commands: 0,
        latency: histogram(),
        failures: 0,
        total_admitted: admitted,
        total_seconds: started.elapsed().as_secs_f64(),
    }
}

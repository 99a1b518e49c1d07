//! The measurements of one round, and how they are counted.

use std::{
    cell::OnceCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::server::Probe;

/// The measurements of one round.
#[derive(Clone, Debug)]
pub struct Sample {
    pub ops: u64,
    pub admitted: u64,
    pub seconds: f64,
    /// CPU time of this process, in seconds.
    pub cpu: f64,
    /// CPU time of Redis, in seconds, and the number of commands.
    pub redis_cpu: f64,
    pub commands: u64,
    pub latency: Histogram<u64>,
    /// Decisions without Redis, because of a failure.
    pub failures: u64,
    /// From the first request of the round to its last reply.
    pub total_admitted: u64,
    pub total_seconds: f64,
}

/// The counters of one worker thread; threads share none.
pub struct Meter {
    ops: AtomicU64,
    admitted: AtomicU64,
    latency: Mutex<Histogram<u64>>,
}

static METERS: Mutex<Vec<Arc<Meter>>> = Mutex::new(Vec::new());

thread_local! {
    static METER: OnceCell<Arc<Meter>> = const { OnceCell::new() };
}

impl Meter {
    pub fn with(f: impl FnOnce(&Self)) {
        METER.with(|meter| f(meter.get_or_init(Self::register)));
    }

    fn register() -> Arc<Self> {
        let meter = Arc::new(Self {
            ops: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            latency: Mutex::new(histogram()),
        });
        METERS.lock().unwrap().push(meter.clone());
        meter
    }

    pub fn count(&self, ops: u64, admitted: u64) {
        // There is one writer, so no locked instruction is needed.
        let add = |to: &AtomicU64, n: u64| {
            to.store(to.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        };
        add(&self.ops, ops);
        add(&self.admitted, admitted);
    }

    pub fn time(&self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latency.lock().unwrap().saturating_record(nanoseconds);
    }
}

/// Nanoseconds, up to a minute.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap()
}

/// CPU time of this process so far, in seconds.
pub fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The counters at the beginning or the end of a measurement.
pub struct Mark {
    at: Instant,
    ops: u64,
    admitted: u64,
    cpu: f64,
    redis: (f64, u64),
}

impl Mark {
    /// Discards the latencies recorded before.
    pub async fn begin(probe: Option<&Probe>) -> Self {
        let mark = Self::read(probe).await;
        for meter in METERS.lock().unwrap().iter() {
            meter.latency.lock().unwrap().reset();
        }
        mark
    }

    async fn read(probe: Option<&Probe>) -> Self {
        let redis = match probe {
            Some(probe) => (probe.cpu().await, probe.commands().await),
            None => (0.0, 0),
        };
        let meters = METERS.lock().unwrap();
        let sum = |of: fn(&Meter) -> &AtomicU64| {
            let each = meters.iter().map(|meter| of(meter).load(Ordering::Relaxed));
            each.sum()
        };
        Self {
            at: Instant::now(),
            ops: sum(|meter| &meter.ops),
            admitted: sum(|meter| &meter.admitted),
            cpu: cpu(),
            redis,
        }
    }

    pub async fn end(self, probe: Option<&Probe>) -> Sample {
        let end = Self::read(probe).await;
        let mut latency = histogram();
        for meter in METERS.lock().unwrap().iter() {
            latency.add(&*meter.latency.lock().unwrap()).unwrap();
        }
        Sample {
            ops: end.ops - self.ops,
            admitted: end.admitted - self.admitted,
            seconds: (end.at - self.at).as_secs_f64(),
            cpu: end.cpu - self.cpu,
            redis_cpu: end.redis.0 - self.redis.0,
            commands: end.redis.1 - self.redis.1,
            latency,
            failures: 0,
            total_admitted: 0,
            total_seconds: 0.0,
        }
    }
}

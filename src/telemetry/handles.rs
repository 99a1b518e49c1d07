//! The handles of the `metrics` facade, as each thread keeps them.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    mem, ptr,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{
    Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString, Unit,
};

use super::meter::{Backend, Cost, Outcome};
use crate::{decision::FailureKind, packed_map::Hashing};

const REQUESTS: &str = "tower_throttle_requests_total";
const WAIT: &str = "tower_throttle_wait_seconds";
const QUEUE: &str = "tower_throttle_queue_length";
const BATCH: &str = "tower_throttle_batch_size";
const CALL: &str = "tower_throttle_redis_call_seconds";
const SCOPES: &str = "tower_throttle_scopes";
const FALLBACKS: &str = "tower_throttle_fallback_total";
const COST: &str = "tower_throttle_cost_total";
const OVERFLOW: &str = "tower_throttle_overflow_total";

/// Names are meant to be few; should somebody put what comes from outside into one, so many get
/// series of their own, and all others share one.
const MOST_POLICIES: usize = 1_000;
pub(super) const OTHER: &str = "other";

/// Limiters, times recorders, that a thread keeps handles for; with more of them the oldest are
/// asked for again.
const MOST_TABLES: usize = 32;

static METADATA: Metadata<'static> =
    Metadata::new("tower_throttle", Level::INFO, Some(module_path!()));

thread_local! {
    static TABLES: RefCell<Vec<Handles>> = const { RefCell::new(Vec::new()) };
}

/// Tells limiters apart: one that is made anew must not count for a recorder that is gone, only
/// because another lies in its place.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs `f` with the handles of this thread for a limiter and the recorder there is now.
pub(super) fn with(id: u64, f: impl FnOnce(&mut Handles, &dyn Recorder)) {
    metrics::with_recorder(|recorder| {
        let mut f = Some(f);
        let mut run = |handles: &mut Handles| {
            if let Some(f) = f.take() {
                f(handles, recorder);
            }
        };
        let at = ptr::from_ref(recorder).cast::<()>().addr();
        let kept = TABLES.try_with(|tables| {
            let mut tables = tables.try_borrow_mut().ok()?;
            run(find(&mut tables, recorder, at, id));
            Some(())
        });
        // The thread ends, or the recorder counts with this limiter: then without keeping them.
        if !matches!(kept, Ok(Some(()))) {
            run(&mut Handles::new(recorder, at, id));
        }
    });
}

fn find<'a>(
    tables: &'a mut Vec<Handles>,
    recorder: &dyn Recorder,
    at: usize,
    id: u64,
) -> &'a mut Handles {
    let known = tables
        .iter()
        .position(|handles| handles.id == id && handles.recorder == at);
    let place = known.unwrap_or_else(|| {
        if tables.len() >= MOST_TABLES {
            tables.remove(0);
        }
        tables.push(Handles::new(recorder, at, id));
        tables.len() - 1
    });
    &mut tables[place]
}

/// For one limiter and one recorder. What never happens is never registered.
pub(super) struct Handles {
    recorder: usize,
    id: u64,
    policies: HashMap<Box<str>, Policy, Hashing>,
    queue: Option<Gauge>,
    scopes: Option<Gauge>,
    batch: Option<Histogram>,
    call: Option<Histogram>,
    /// By kind, in the order of `FailureKind::ALL`.
    fallbacks: [Option<Counter>; FailureKind::ALL.len()],
}

impl Handles {
    fn new(recorder: &dyn Recorder, at: usize, id: u64) -> Self {
        describe(recorder);
        Self {
            recorder: at,
            id,
            policies: HashMap::default(),
            queue: None,
            scopes: None,
            batch: None,
            call: None,
            fallbacks: Default::default(),
        }
    }

    pub(super) fn policy(&mut self, name: &str) -> &mut Policy {
        if !self.policies.contains_key(name) {
            let name = if has_room(name) { name } else { OTHER };
            if !self.policies.contains_key(name) {
                self.policies.insert(name.into(), Policy::new(name));
            }
            return self.policies.get_mut(name).expect("it is there by now");
        }
        self.policies.get_mut(name).expect("it was found above")
    }

    pub(super) fn queue(&mut self, recorder: &dyn Recorder, more: f64) {
        let gauge = || recorder.register_gauge(&Key::from_static_name(QUEUE), &METADATA);
        self.queue.get_or_insert_with(gauge).increment(more);
    }

    pub(super) fn scopes(&mut self, recorder: &dyn Recorder, more: f64) {
        let gauge = || recorder.register_gauge(&Key::from_static_name(SCOPES), &METADATA);
        self.scopes.get_or_insert_with(gauge).increment(more);
    }

    pub(super) fn fell_back(&mut self, recorder: &dyn Recorder, kind: FailureKind) {
        let counter = || {
            let labels = vec![Label::from_static_parts("reason", kind.label())];
            recorder.register_counter(&Key::from_parts(FALLBACKS, labels), &METADATA)
        };
        self.fallbacks[kind as usize]
            .get_or_insert_with(counter)
            .increment(1);
    }

    pub(super) fn call(&mut self, recorder: &dyn Recorder, commands: usize, took: Duration) {
        let histogram = |name| recorder.register_histogram(&Key::from_static_name(name), &METADATA);
        self.batch
            .get_or_insert_with(|| histogram(BATCH))
            .record(commands as f64);
        self.call
            .get_or_insert_with(|| histogram(CALL))
            .record(took);
    }
}

/// Whether this name is one of those with series of their own, in all threads. Once all of those
/// are known, nothing is locked: names that a stranger makes up must not hold callers up.
fn has_room(name: &str) -> bool {
    static ALL: OnceLock<HashSet<Box<str>>> = OnceLock::new();
    static NAMES: Mutex<Option<HashSet<Box<str>>>> = Mutex::new(None);
    if let Some(all) = ALL.get() {
        return all.contains(name);
    }
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(all) = ALL.get() {
        return all.contains(name);
    }
    let known = names.get_or_insert_default();
    known.insert(name.into());
    if known.len() >= MOST_POLICIES {
        ALL.get_or_init(|| mem::take(known));
    }
    true
}

/// What is counted by the name of a scope, and never by its key.
pub(super) struct Policy {
    name: SharedString,
    /// By outcome and backend.
    requests: [[Option<Counter>; Backend::ALL.len()]; Outcome::ALL.len()],
    wait: Option<Histogram>,
    overflow: Option<Counter>,
    /// By kind, with the part of a token that is still to be counted: counters are whole.
    costs: [Option<(Counter, f64)>; Cost::ALL.len()],
}

impl Policy {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned().into(),
            requests: Default::default(),
            wait: None,
            overflow: None,
            costs: Default::default(),
        }
    }

    fn key(&self, metric: &'static str, more: &[(&'static str, &'static str)]) -> Key {
        let mut labels = vec![Label::new("policy", self.name.clone())];
        labels.extend(
            more.iter()
                .map(|(key, value)| Label::from_static_parts(key, value)),
        );
        Key::from_parts(metric, labels)
    }

    pub(super) fn count(&mut self, recorder: &dyn Recorder, outcome: Outcome, backend: Backend) {
        let (row, column) = (outcome as usize, backend as usize);
        if self.requests[row][column].is_none() {
            let labels = [
                ("outcome", Outcome::ALL[row]),
                ("backend", Backend::ALL[column]),
            ];
            let key = self.key(REQUESTS, &labels);
            self.requests[row][column] = Some(recorder.register_counter(&key, &METADATA));
        }
        if let Some(counter) = &self.requests[row][column] {
            counter.increment(1);
        }
    }

    pub(super) fn wait(&mut self, recorder: &dyn Recorder, wait: Duration) {
        if self.wait.is_none() {
            let key = self.key(WAIT, &[]);
            self.wait = Some(recorder.register_histogram(&key, &METADATA));
        }
        if let Some(histogram) = &self.wait {
            histogram.record(wait);
        }
    }

    pub(super) fn overflow(&mut self, recorder: &dyn Recorder) {
        if self.overflow.is_none() {
            let key = self.key(OVERFLOW, &[]);
            self.overflow = Some(recorder.register_counter(&key, &METADATA));
        }
        if let Some(counter) = &self.overflow {
            counter.increment(1);
        }
    }

    pub(super) fn cost(&mut self, recorder: &dyn Recorder, cost: Cost, tokens: f64) {
        let place = cost as usize;
        if self.costs[place].is_none() {
            let key = self.key(COST, &[("kind", Cost::ALL[place])]);
            self.costs[place] = Some((recorder.register_counter(&key, &METADATA), 0.0));
        }
        if let Some((counter, part)) = &mut self.costs[place] {
            let sum = *part + tokens.max(0.0);
            let whole = sum.floor();
            *part = sum - whole;
            if whole > 0.0 {
                counter.increment(whole as u64);
            }
        }
    }
}

/// A recorder that was told before takes no harm.
fn describe(recorder: &dyn Recorder) {
    let counters = [
        (
            REQUESTS,
            "Acquisitions, by the name of the scope, how they ended, and who decided",
        ),
        (
            COST,
            "Tokens reserved by acquisitions, charged on top by settling, and given back",
        ),
        (
            OVERFLOW,
            "Decisions by a bucket that several keys share, because max_scopes buckets are held",
        ),
        (
            FALLBACKS,
            "Decisions made without Redis because it could not be asked in time, by reason",
        ),
    ];
    for (name, text) in counters {
        recorder.describe_counter(name.into(), Some(Unit::Count), text.into());
    }
    let gauges = [
        (
            QUEUE,
            "Demands and corrections queued for Redis and not sent yet",
        ),
        (SCOPES, "Buckets held in this process's memory"),
        (
            super::DEGRADED,
            "Limiters that decide from memory because Redis cannot be asked",
        ),
        (
            super::RESERVED,
            "The part of each limit that is reserved for limiters that are missing",
        ),
    ];
    for (name, text) in gauges {
        recorder.describe_gauge(name.into(), Some(Unit::Count), text.into());
    }
    let histograms = [
        (
            WAIT,
            Unit::Seconds,
            "How long acquisitions waited that were given a turn later and then admitted",
        ),
        (
            BATCH,
            Unit::Count,
            "Demands and corrections in one call to Redis",
        ),
        (
            CALL,
            Unit::Seconds,
            "How long calls to Redis took, those that failed included",
        ),
    ];
    for (name, unit, text) in histograms {
        recorder.describe_histogram(name.into(), Some(unit), text.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_end_share_one_policy() {
        let count = |table: &Handles| table.policies.len();
        let recorder = metrics::NoopRecorder;
        let mut handles = Handles::new(&recorder, 0, next_id());
        for n in 0..3 * MOST_POLICIES {
            handles.policy(&format!("policy-{n}"));
        }
        assert!(count(&handles) <= MOST_POLICIES + 1, "{}", count(&handles));
        let mut other_thread = Handles::new(&recorder, 1, next_id());
        for n in (0..3 * MOST_POLICIES).rev() {
            other_thread.policy(&format!("policy-{n}"));
        }
        let mut names: Vec<_> = handles.policies.keys().collect();
        let mut others: Vec<_> = other_thread.policies.keys().collect();
        names.sort_unstable();
        others.sort_unstable();
        assert_eq!(names, others, "the same ones in all threads");
        // Neither allocated nor locked for, however many there are.
        let counted = allocation_counter::measure(|| {
            for _ in 0..100 {
                handles.policy("beyond them");
            }
        });
        assert_eq!(counted.count_total, 0);
    }

    #[test]
    fn parts_of_tokens_add_up() {
        use std::sync::Arc;

        #[derive(Default)]
        struct Sum(AtomicU64);
        impl metrics::CounterFn for Sum {
            fn increment(&self, value: u64) {
                self.0.fetch_add(value, Ordering::Relaxed);
            }
            fn absolute(&self, _: u64) {}
        }
        let sum = Arc::new(Sum::default());
        let mut policy = Policy::new("p");
        policy.costs[Cost::Settled as usize] = Some((Counter::from_arc(sum.clone()), 0.0));
        for _ in 0..1_000 {
            policy.cost(&metrics::NoopRecorder, Cost::Settled, 0.75);
        }
        assert_eq!(sum.0.load(Ordering::Relaxed), 750);
    }
}

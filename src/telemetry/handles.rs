//! The handles of one limiter at one recorder. A metric is registered when it is first recorded.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString};

use super::{
    labels::{Backend, Cost, Outcome},
    names::{
        BATCH, CALL, COST, DEGRADED, FALLBACKS, OVERFLOW, QUEUE, REQUESTS, RESERVED, SCOPES, WAIT,
    },
};
use crate::{decision::FailureKind, packed_map::Hashing};

/// The most scope names with series of their own; all others share the name [`OTHER`]. Names are
/// meant to be few, but an application may make them from what its clients send.
const MOST_NAMES: usize = 1_000;
pub(super) const OTHER: &str = "other";

static METADATA: Metadata<'static> =
    Metadata::new("tower_throttle", Level::INFO, Some(module_path!()));

#[derive(Default)]
pub(super) struct Handles {
    scopes: HashMap<Box<str>, ScopeHandles, Hashing>,
    queue: Option<Gauge>,
    buckets: Option<Gauge>,
    degraded: Option<Gauge>,
    reserved: Option<Gauge>,
    batch: Option<Histogram>,
    call: Option<Histogram>,
    /// By kind, in the order of `FailureKind::ALL`.
    fallbacks: [Option<Counter>; FailureKind::ALL.len()],
}

impl Handles {
    pub(super) fn scope(&mut self, name: &str) -> &mut ScopeHandles {
        if !self.scopes.contains_key(name) {
            let name = if has_own_series(name) { name } else { OTHER };
            if !self.scopes.contains_key(name) {
                self.scopes.insert(name.into(), ScopeHandles::new(name));
            }
            return self.scopes.get_mut(name).expect("inserted above");
        }
        self.scopes.get_mut(name).expect("found above")
    }

    pub(super) fn queue(&mut self, recorder: &dyn Recorder, more: f64) {
        increment(&mut self.queue, recorder, QUEUE, more);
    }

    pub(super) fn scopes(&mut self, recorder: &dyn Recorder, more: f64) {
        increment(&mut self.buckets, recorder, SCOPES, more);
    }

    pub(super) fn degraded(&mut self, recorder: &dyn Recorder, more: f64) {
        increment(&mut self.degraded, recorder, DEGRADED, more);
    }

    pub(super) fn reserved(&mut self, recorder: &dyn Recorder, more: f64) {
        increment(&mut self.reserved, recorder, RESERVED, more);
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

fn increment(gauge: &mut Option<Gauge>, recorder: &dyn Recorder, name: &'static str, more: f64) {
    gauge
        .get_or_insert_with(|| recorder.register_gauge(&Key::from_static_name(name), &METADATA))
        .increment(more);
}

/// Whether this name is one of those with series of their own, which are the same in all threads.
/// Once there are [`MOST_NAMES`], this takes no lock: many made-up names must not slow callers down.
fn has_own_series(name: &str) -> bool {
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
    if known.len() >= MOST_NAMES {
        ALL.get_or_init(|| mem::take(known));
    }
    true
}

/// The handles of one scope, by its name and never by its key.
pub(super) struct ScopeHandles {
    name: SharedString,
    /// By outcome and backend.
    requests: [[Option<Counter>; Backend::ALL.len()]; Outcome::ALL.len()],
    wait: Option<Histogram>,
    overflow: Option<Counter>,
    /// By kind, with the fraction of a token that is not counted yet: counters count whole ones.
    costs: [Option<(Counter, f64)>; Cost::ALL.len()],
}

impl ScopeHandles {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned().into(),
            requests: Default::default(),
            wait: None,
            overflow: None,
            costs: Default::default(),
        }
    }

    pub(super) fn count(&mut self, recorder: &dyn Recorder, outcome: Outcome, backend: Backend) {
        let (row, column) = (outcome as usize, backend as usize);
        let counter = || {
            let labels = [
                ("outcome", Outcome::ALL[row]),
                ("backend", Backend::ALL[column]),
            ];
            recorder.register_counter(&key(&self.name, REQUESTS, &labels), &METADATA)
        };
        self.requests[row][column]
            .get_or_insert_with(counter)
            .increment(1);
    }

    pub(super) fn wait(&mut self, recorder: &dyn Recorder, wait: Duration) {
        let histogram = || recorder.register_histogram(&key(&self.name, WAIT, &[]), &METADATA);
        self.wait.get_or_insert_with(histogram).record(wait);
    }

    pub(super) fn overflow(&mut self, recorder: &dyn Recorder) {
        let counter = || recorder.register_counter(&key(&self.name, OVERFLOW, &[]), &METADATA);
        self.overflow.get_or_insert_with(counter).increment(1);
    }

    pub(super) fn cost(&mut self, recorder: &dyn Recorder, cost: Cost, tokens: f64) {
        let counter = || {
            let key = key(&self.name, COST, &[("kind", Cost::ALL[cost as usize])]);
            (recorder.register_counter(&key, &METADATA), 0.0)
        };
        let (counter, fraction) = self.costs[cost as usize].get_or_insert_with(counter);
        let sum = *fraction + tokens.max(0.0);
        let whole = sum.floor();
        *fraction = sum - whole;
        if whole > 0.0 {
            counter.increment(whole as u64);
        }
    }
}

fn key(scope: &SharedString, metric: &'static str, more: &[(&'static str, &'static str)]) -> Key {
    let mut labels = vec![Label::new("scope", scope.clone())];
    labels.extend(
        more.iter()
            .map(|(key, value)| Label::from_static_parts(key, value)),
    );
    Key::from_parts(metric, labels)
}

#[cfg(test)]
mod tests;

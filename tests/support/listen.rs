//! Records what the limiter logs and counts, as an application does.

#![allow(dead_code, unreachable_pub)]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    sync::{Arc, Mutex, Once, PoisonError},
};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString,
    Unit,
};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

/// The lines that the crate logs on the recording thread.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<(Level, String)>>>);

thread_local! {
    static HERE: RefCell<Option<Log>> = const { RefCell::new(None) };
}

/// Stops recording on this thread when it is dropped.
pub struct Recording(PhantomData<*const ()>);

impl Drop for Recording {
    fn drop(&mut self) {
        HERE.set(None);
    }
}

impl Log {
    /// Records on this thread until the guard is dropped.
    ///
    /// Every test in which the crate logs must record, even if it reads no line: `tracing` caches
    /// for all threads whether a line is enabled, when the first thread reaches it.
    pub fn listen() -> (Self, Recording) {
        static PROCESS: Once = Once::new();
        PROCESS.call_once(|| {
            tracing::subscriber::set_global_default(ByThread).expect("no other subscriber");
        });
        let log = Self::default();
        HERE.set(Some(log.clone()));
        (log, Recording(PhantomData))
    }

    /// The lines of this level, in order.
    pub fn lines(&self, level: Level) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = lines.iter().filter(|(other, _)| *other == level);
        of.map(|(_, line)| line.clone()).collect()
    }

    /// The numbers of warnings, info lines and errors.
    pub fn counts(&self) -> [usize; 3] {
        [Level::WARN, Level::INFO, Level::ERROR].map(|level| self.lines(level).len())
    }

    /// The number of lines of all levels.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Passes each line to the log of the thread that wrote it.
struct ByThread;

impl Subscriber for ByThread {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("tower_throttle")
    }

    fn event(&self, event: &Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        HERE.with_borrow(|log| {
            if let Some(Log(lines)) = log {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push((*event.metadata().level(), line.0));
            }
        });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Every counter and gauge, by name and labels.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<BTreeMap<String, f64>>>);

impl Metrics {
    /// All recorded values, by `name{label=value}`.
    pub fn all(&self) -> BTreeMap<String, f64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The value of this name and labels.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.all().get(name).copied()
    }

    fn handle(&self, key: &Key) -> Arc<Handle> {
        let labels: Vec<_> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let name = match &labels[..] {
            [] => key.name().to_owned(),
            _ => format!("{}{{{}}}", key.name(), labels.join(",")),
        };
        Arc::new(Handle {
            name,
            values: self.clone(),
        })
    }
}

struct Handle {
    name: String,
    values: Metrics,
}

impl Handle {
    fn change(&self, change: impl FnOnce(f64) -> f64) {
        let mut values = self.values.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.entry(self.name.clone()).or_default();
        *value = change(*value);
    }
}

impl CounterFn for Handle {
    fn increment(&self, value: u64) {
        self.change(|count| count + value as f64);
    }

    fn absolute(&self, value: u64) {
        self.change(|_| value as f64);
    }
}

impl GaugeFn for Handle {
    fn increment(&self, value: f64) {
        self.change(|gauge| gauge + value);
    }

    fn decrement(&self, value: f64) {
        self.change(|gauge| gauge - value);
    }

    fn set(&self, value: f64) {
        self.change(|_| value);
    }
}

impl Recorder for Metrics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.handle(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.handle(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

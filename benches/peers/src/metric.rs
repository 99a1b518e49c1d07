//! What is computed from the samples of a case.

use crate::{
    case::{Figures, median},
    sample::Sample,
};

/// A quantity of one round.
#[derive(Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    of: fn(&Sample) -> f64,
}

pub const THROUGHPUT: Metric = Metric {
    name: "throughput",
    unit: "ops/s",
    of: throughput,
};

/// Of one thread.
pub const TIME: Metric = Metric {
    name: "time per decision",
    unit: "ns",
    of: |sample| 1e9 * sample.seconds / sample.ops as f64,
};

pub const P50: Metric = Metric {
    name: "p50",
    unit: "µs",
    of: |sample| latency_us(sample, 0.5),
};

pub const P99: Metric = Metric {
    name: "p99",
    unit: "µs",
    of: |sample| latency_us(sample, 0.99),
};

/// CPU time of the thread of Redis that executes commands.
pub const REDIS_CPU: Metric = Metric {
    name: "Redis CPU per request",
    unit: "µs",
    of: |sample| 1e6 * sample.redis_cpu / sample.ops as f64,
};

/// CPU time of this process.
pub const CLIENT_CPU: Metric = Metric {
    name: "client CPU per request",
    unit: "µs",
    of: |sample| 1e6 * sample.cpu / sample.ops as f64,
};

pub const COMMANDS: Metric = Metric {
    name: "Redis commands per request",
    unit: "",
    of: |sample| sample.commands as f64 / sample.ops as f64,
};

pub fn throughput(sample: &Sample) -> f64 {
    sample.ops as f64 / sample.seconds
}

fn latency_us(sample: &Sample, quantile: f64) -> f64 {
    sample.latency.value_at_quantile(quantile) as f64 / 1e3
}

impl Metric {
    /// The values of the rounds; `NaN`, which medians leave out, for a round in which the limiter
    /// decided without Redis: that is another workload.
    fn each(self, figures: &Figures) -> impl Iterator<Item = f64> {
        let of = move |sample: &Sample| match sample.failures {
            0 => (self.of)(sample),
            _ => f64::NAN,
        };
        figures.samples.iter().map(of)
    }

    pub fn median(self, figures: &Figures) -> f64 {
        median(self.each(figures).collect())
    }

    /// The median of the ratios within each round.
    pub fn ratio(self, figures: &Figures, base: &Figures) -> f64 {
        self.combined(figures, base, |own, base| own / base)
    }

    /// The median of the differences within each round.
    pub fn difference(self, figures: &Figures, base: &Figures) -> f64 {
        self.combined(figures, base, |own, base| own - base)
    }

    fn combined(self, figures: &Figures, base: &Figures, of: fn(f64, f64) -> f64) -> f64 {
        let pairs = self.each(figures).zip(self.each(base));
        median(pairs.map(|(own, base)| of(own, base)).collect())
    }
}

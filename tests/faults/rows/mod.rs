//! The rows: the faults, and the figures that each allows.

mod answers;
mod data;
mod network;
mod partial;
mod process;
mod soak;

use futures_util::future::BoxFuture;

use super::{
    child::{CAPACITY, RATE},
    figures::{Figures, IN_FLIGHT},
    stage::{PLAIN, Setup, Stage},
};

/// By then, processes that start together have counted each other, in seconds.
const WARM: f64 = 2.5;

/// Seconds after the fault: the recovery, the recovery window, and a check of what is left.
const AFTER: f64 = 5.0;

/// Tokens of reservations that are used late on a busy machine.
const LATE: f64 = 0.05 * RATE;

/// The figures that a row allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect {
    /// Requests are rejected as `Unavailable`.
    pub(crate) errors: bool,
    /// Processes notice an outage.
    pub(crate) outage: bool,
    /// All processes recover in the end.
    pub(crate) recovers: bool,
    /// While degraded, most of the local share is admitted.
    pub(crate) share: bool,
    /// Tokens over the limit in the worst window; `over_strict` where local shares start empty.
    pub(crate) over: f64,
    pub(crate) over_strict: f64,
    /// Tokens that may be missing two seconds after the recovery.
    pub(crate) under: f64,
}

impl Expect {
    /// Allows `tokens` more over the limit.
    const fn and_over(self, tokens: f64) -> Self {
        Self {
            over: self.over + tokens,
            over_strict: self.over_strict + tokens,
            ..self
        }
    }

    /// Allows any number of missing tokens.
    const fn and_under(self) -> Self {
        Self {
            under: f64::INFINITY,
            ..self
        }
    }
}

const OUTAGE: Expect = Expect {
    errors: false,
    outage: true,
    recovers: true,
    share: true,
    over: IN_FLIGHT + 0.1 * CAPACITY + LATE,
    over_strict: IN_FLIGHT + LATE,
    under: IN_FLIGHT + LATE,
};

/// Faults that no process notices.
const CALM: Expect = Expect {
    outage: false,
    recovers: false,
    ..OUTAGE
};

type Script = for<'a> fn(&'a mut Stage, Length) -> BoxFuture<'a, ()>;

/// The length of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Length {
    pub(crate) full: bool,
}

impl Length {
    /// In seconds.
    fn of(self, short: f64, full: f64) -> f64 {
        if self.full { full } else { short }
    }
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// The title in the table.
    pub(crate) fault: &'static str,
    pub(crate) expect: Expect,
    setup: Setup,
    /// Runs by default.
    core: bool,
    script: Script,
}

fn row(name: &'static str, fault: &'static str, script: Script) -> Row {
    Row {
        name,
        fault,
        expect: OUTAGE,
        setup: PLAIN,
        core: false,
        script,
    }
}

impl Row {
    fn on(self, setup: Setup) -> Self {
        Self { setup, ..self }
    }

    fn expect(self, expect: Expect) -> Self {
        Self { expect, ..self }
    }

    fn core(self) -> Self {
        Self { core: true, ..self }
    }

    pub(crate) fn run(&self, full: bool) -> Figures {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut stage = Stage::new(&self.setup).await;
            stage.go();
            stage.sleep(WARM).await;
            (self.script)(&mut stage, Length { full }).await;
            stage.sleep(AFTER).await;
            Figures::of(&stage.finish().await)
        })
    }
}

/// The rows of this run.
pub(crate) fn all(full: bool) -> Vec<Row> {
    if soak::seconds().is_some() {
        return soak::rows();
    }
    let mut rows = process::rows();
    rows.extend(network::rows());
    rows.extend(answers::rows());
    rows.extend(data::rows());
    rows.extend(partial::rows());
    rows.into_iter().filter(|row| full || row.core).collect()
}

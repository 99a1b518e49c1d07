//! The rows: what is done to Redis, and what may come of it.

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

/// Processes that start together know of each other by then.
const WARM: f64 = 2.5;

/// After the fault: the way back, the grace, and a look at what is left.
const AFTER: f64 = 5.0;

/// Turns are used so much late on a busy machine, tokens.
const LATE: f64 = 0.05 * RATE;

/// What a row allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect {
    /// Callers are told that there is no store.
    pub(crate) errors: bool,
    /// Processes notice an outage.
    pub(crate) outage: bool,
    /// All are back on Redis in the end.
    pub(crate) back: bool,
    /// While away, nine tenths of the share are admitted.
    pub(crate) share: bool,
    /// Tokens over the limit in the worst window; and where shares start empty.
    pub(crate) over: f64,
    pub(crate) over_strict: f64,
    /// Tokens that may be missing two seconds after the recovery.
    pub(crate) under: f64,
}

impl Expect {
    /// So many more tokens over the limit.
    const fn and_over(self, tokens: f64) -> Self {
        Self {
            over: self.over + tokens,
            over_strict: self.over_strict + tokens,
            ..self
        }
    }

    /// However many are missing in the end.
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
    back: true,
    share: true,
    over: IN_FLIGHT + 0.1 * CAPACITY + LATE,
    over_strict: IN_FLIGHT + LATE,
    under: IN_FLIGHT + LATE,
};

/// What nobody notices.
const CALM: Expect = Expect {
    outage: false,
    back: false,
    ..OUTAGE
};

type Script = for<'a> fn(&'a mut Stage, Length) -> BoxFuture<'a, ()>;

/// How long a fault lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Length {
    pub(crate) full: bool,
}

impl Length {
    /// Seconds.
    fn of(self, short: f64, full: f64) -> f64 {
        if self.full { full } else { short }
    }
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) fault: &'static str,
    pub(crate) expect: Expect,
    setup: Setup,
    /// Run by default.
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

/// The rows that run now.
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

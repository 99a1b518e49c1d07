//! The Tokio runtime of a caller.

use std::{
    panic::{catch_unwind, resume_unwind},
    time::Duration,
};

use tokio::{
    runtime::{Handle, Id},
    time::sleep,
};

const NONE: &str = "tower-throttle was polled outside a Tokio runtime: to wait for a token or to \
                    ask Redis it needs one, with its timer (`enable_time` or `enable_all`)";

/// The runtime that polls.
///
/// # Panics
///
/// If there is none.
#[track_caller]
pub(crate) fn current() -> Id {
    match Handle::try_current() {
        Ok(runtime) => runtime.id(),
        Err(_) => panic!("{NONE}"),
    }
}

/// Checks that tasks which use timers can be started here: a task cannot tell its caller that
/// they cannot.
///
/// # Panics
///
/// If there is no runtime, or one without a timer.
#[track_caller]
pub(crate) fn require() {
    current();
    // Says that `enable_time` is missing.
    drop(sleep(Duration::ZERO));
}

/// As `require`; `undo` runs before the panic.
#[track_caller]
pub(crate) fn require_or(undo: impl FnOnce()) {
    if Handle::try_current().is_err() {
        undo();
        panic!("{NONE}");
    }
    if let Err(panic) = catch_unwind(|| drop(sleep(Duration::ZERO))) {
        undo();
        resume_unwind(panic);
    }
}

/// As `require`, for those who must not panic.
pub(crate) fn is_usable() -> bool {
    Handle::try_current().is_ok() && catch_unwind(|| drop(sleep(Duration::ZERO))).is_ok()
}

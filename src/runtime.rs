//! The Tokio runtime of the caller.

use std::{
    panic::{catch_unwind, resume_unwind},
    time::Duration,
};

use tokio::{
    runtime::{Handle, Id},
    time::sleep,
};

const NO_RUNTIME: &str = "tower-throttle was polled outside a Tokio runtime: to wait for a token, \
                          or to call Redis, it needs one with a timer (`enable_time` or \
                          `enable_all`)";

/// The runtime that polls the caller.
///
/// # Panics
///
/// If there is none.
#[track_caller]
pub(crate) fn current() -> Id {
    match Handle::try_current() {
        Ok(runtime) => runtime.id(),
        Err(_) => panic!("{NO_RUNTIME}"),
    }
}

/// Checks that a task which uses timers can be spawned. The task itself could not report that to
/// the caller.
///
/// # Panics
///
/// If there is no runtime, or one without a timer.
#[track_caller]
pub(crate) fn require() {
    current();
    // Panics if the runtime has no timer.
    drop(sleep(Duration::ZERO));
}

/// As `require`; `undo` runs before the panic.
#[track_caller]
pub(crate) fn require_or(undo: impl FnOnce()) {
    if Handle::try_current().is_err() {
        undo();
        panic!("{NO_RUNTIME}");
    }
    if let Err(panic) = catch_unwind(|| drop(sleep(Duration::ZERO))) {
        undo();
        resume_unwind(panic);
    }
}

/// As `require`, for code that must not panic.
pub(crate) fn is_usable() -> bool {
    Handle::try_current().is_ok() && catch_unwind(|| drop(sleep(Duration::ZERO))).is_ok()
}

//! Background tasks, whose panics are reported.

use std::{any::Any, future::Future, panic::AssertUnwindSafe};

use futures_util::future::FutureExt;

use crate::decision::{Failure, FailureKind};

/// Runs a background task that `does` something. If it panics, passes the failure to `panicked`.
pub(crate) async fn supervised(
    does: &'static str,
    task: impl Future<Output = ()>,
    panicked: impl FnOnce(&Failure),
) {
    // Unwind safe: what the task shares with others is consistent, because no lock is held while
    // foreign code runs.
    if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
        panicked(&failure(does, &*panic));
    }
}

/// The failure for a panic of the task that `does` something.
pub(crate) fn failure(does: &str, panic: &(dyn Any + Send)) -> Failure {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref().map(String::as_str))
        .unwrap_or("no message");
    Failure {
        advice: Some("this is a bug: please report it with the backtrace"),
        ..Failure::new(
            FailureKind::Panicked,
            format!("the background task that {does} panicked: {message}"),
        )
    }
}

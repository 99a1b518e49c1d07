//! Background tasks: none ends in silence.

use std::{any::Any, future::Future, panic::AssertUnwindSafe};

use futures_util::future::FutureExt;

use crate::decision::{Failure, FailureKind};

/// Runs a background task that `does` something; where it panics, passes on what happened.
pub(crate) async fn supervised(
    does: &'static str,
    task: impl Future<Output = ()>,
    panicked: impl FnOnce(&Failure),
) {
    // Whatever the task shares with others is left whole: no lock is held while foreign code runs.
    if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
        panicked(&failure(does, &*panic));
    }
}

/// What a panic of the task that `does` something means for the limiter.
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

//! The queue between callers and the worker.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{runtime::Id, sync::Notify};

use super::{command::Command, request::Requester};
use crate::telemetry::Meter;

/// Requests that may be queued before further ones are left to the fallback.
pub(crate) const MAX_QUEUED: usize = 131_072;

/// No length wakes the worker.
pub(super) const NEVER: usize = usize::MAX;

/// Which worker is to do something, and how far it had come when that was queued.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mark {
    pub(crate) runtime: Id,
    pub(super) worker: u64,
    pub(super) progress: u64,
}

pub(super) struct SharedQueue<R: Requester> {
    queue: Mutex<Queue<R>>,
    /// Wakes the worker.
    pub(super) wake: Notify,
    meter: Meter,
}

impl<R: Requester> SharedQueue<R> {
    pub(super) fn new(meter: Meter) -> Self {
        Self {
            queue: Mutex::new(Queue {
                commands: VecDeque::new(),
                gathered: 0,
                wake_at: NEVER,
                running: None,
                worker: 0,
                progress: 0,
                is_closed: false,
                reported: 0,
            }),
            wake: Notify::new(),
            meter,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Queue<R>> {
        // No panic under this lock can leave the queue half written.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unlocks the queue, and reports its length to the gauge.
    pub(super) fn unlock_and_report(&self, mut queue: MutexGuard<'_, Queue<R>>) {
        let now = queue.len();
        let before = std::mem::replace(&mut queue.reported, now);
        drop(queue);
        self.meter.queue(before, now);
    }
}

pub(super) struct Queue<R: Requester> {
    pub(super) commands: VecDeque<Command<R>>,
    /// How many more the worker holds and has not sent.
    pub(super) gathered: usize,
    /// At how many commands the worker is woken. It has no use for fewer.
    pub(super) wake_at: usize,
    /// The runtime of the worker, if one runs.
    pub(super) running: Option<Id>,
    /// The number of the last worker. Earlier ones stop.
    pub(super) worker: u64,
    /// Counts the steps of workers. It stands still while their runtime is not driven.
    pub(super) progress: u64,
    pub(super) is_closed: bool,
    /// The length that the gauge shows.
    reported: usize,
}

impl<R: Requester> Queue<R> {
    pub(super) fn len(&self) -> usize {
        self.commands.len() + self.gathered
    }

    /// None if no worker runs.
    pub(super) fn mark(&self) -> Option<Mark> {
        Some(Mark {
            runtime: self.running?,
            worker: self.worker,
            progress: self.progress,
        })
    }
}

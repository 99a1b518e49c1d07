//! The short cut for a bucket that has only a level.

use super::{BucketParams, model::CLOCK_SLACK_US};
use crate::clock::ceil;

/// The result of [`take_at_once`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum AtOnce {
    Taken,
    /// Too few tokens: when to retry, in microseconds. Nothing was changed.
    Rejected(f64),
    /// The bucket's time must be repaired first. Nothing was changed.
    ClockWasSetBack,
}

/// Does what [`Bucket::advance`](super::Bucket::advance) and then
/// [`Bucket::take`](super::Bucket::take) of one cost without a wait do, for a bucket without
/// reservations and pause, which nearly all buckets are.
#[inline]
pub(crate) fn take_at_once(
    level: &mut f64,
    at: &mut f64,
    now: f64,
    cost: f64,
    params: BucketParams,
) -> AtOnce {
    let time = at.max(now);
    let refilled = params.capacity.min(*level + (time - *at) * params.per_us);
    if *at > now + CLOCK_SLACK_US {
        return AtOnce::ClockWasSetBack;
    }
    if refilled < cost {
        return AtOnce::Rejected(ceil((cost - refilled) / params.per_us).max(1.0));
    }
    *level = refilled - cost;
    *at = time;
    AtOnce::Taken
}

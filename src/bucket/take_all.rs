//! Requests that take from several buckets.

use super::{Bucket, BucketParams, Reservation};

/// The result of [`take_all`]. `which` is an index into its buckets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum TakenAll {
    /// Each bucket granted its cost.
    All,
    /// Only the bucket with the longest wait reserved its cost, due after `wait` microseconds. The
    /// other costs are to be requested when that reservation is due.
    ///
    /// Taking them now and using them later would exceed the windows of their buckets. Keeping
    /// room for them there would let one slow bucket block the others.
    Slowest {
        which: usize,
        wait: f64,
        reservation: Reservation,
    },
    /// Nothing was taken. `retry_after` is in microseconds.
    Rejected { which: usize, retry_after: f64 },
}

/// Takes a cost from each of several different buckets, or from none.
pub(crate) fn take_all<'a>(
    buckets: impl Iterator<Item = (&'a mut Bucket, f64, BucketParams)>,
    max_wait: f64,
) -> TakenAll {
    let mut buckets: Vec<_> = buckets.collect();
    let (mut which, mut wait) = (0, -1.0);
    for (index, (bucket, cost, params)) in buckets.iter().enumerate() {
        let quoted = bucket.quote(*cost, *params);
        if quoted > wait {
            (which, wait) = (index, quoted);
        }
    }
    if wait <= 0.0 {
        for (bucket, cost, params) in &mut buckets {
            bucket.take(*cost, 1, 0.0, *params);
        }
        TakenAll::All
    } else if wait <= max_wait {
        let (bucket, cost, params) = &mut buckets[which];
        bucket.take(*cost, 1, max_wait, *params);
        TakenAll::Slowest {
            which,
            wait,
            reservation: Reservation::due(bucket.at + wait, *cost, *params),
        }
    } else {
        TakenAll::Rejected {
            which,
            retry_after: (wait - max_wait).max(1.0),
        }
    }
}

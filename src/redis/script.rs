//! The scripts, and the argument and reply of `acquire.lua` as bytes. No I/O.

use std::sync::OnceLock;

use crate::{
    bucket::{BucketParams, Taken},
    redis::{level_cache::BucketState, op::Op},
};

/// A script, which Redis identifies by its hash.
pub(crate) struct Script {
    pub(crate) source: &'static str,
    /// Set by the transport when the script first runs.
    pub(crate) hash: OnceLock<String>,
}

/// Decides requests; the same model as `bucket/mod.rs`.
pub(crate) static ACQUIRE: Script = Script {
    source: include_str!("acquire.lua"),
    hash: OnceLock::new(),
};

/// Counts the limiters that are alive.
pub(crate) static HEARTBEAT: Script = Script {
    source: include_str!("heartbeat.lua"),
    hash: OnceLock::new(),
};

/// The code of a request in the script. [`Op`] has the other codes.
pub(crate) const TAKE: f64 = 0.0;

/// The first request for a bucket in a call: `n` callers, each of whom takes `cost` tokens and
/// waits at most `max_wait_us` microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct First {
    pub(crate) cost: f64,
    pub(crate) n: u32,
    pub(crate) max_wait_us: f64,
}

impl First {
    pub(crate) const NONE: Self = Self {
        cost: 0.0,
        n: 0,
        max_wait_us: 0.0,
    };
}

/// The argument of one call: the buckets, each with its first request, then everything else.
///
/// Buckets count from zero here, and from one in the script.
#[derive(Debug, Default)]
pub(crate) struct Argument {
    buckets: Vec<u8>,
    steps: Vec<u8>,
}

impl Argument {
    fn push(bytes: &mut Vec<u8>, numbers: &[f64]) {
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Has room for this many buckets.
    pub(crate) fn with_buckets(buckets: usize) -> Self {
        Self {
            buckets: Vec::with_capacity(40 * buckets),
            steps: Vec::new(),
        }
    }

    /// Appends a bucket.
    pub(crate) fn bucket(&mut self, params: BucketParams, first: First) {
        let First {
            cost,
            n,
            max_wait_us,
        } = first;
        let numbers = [
            params.capacity,
            params.per_us,
            cost,
            f64::from(n),
            max_wait_us,
        ];
        Self::push(&mut self.buckets, &numbers);
    }

    /// Appends `n` equal requests; each takes from all of these buckets (index, cost) or from none.
    pub(crate) fn take(&mut self, n: u32, max_wait_us: f64, buckets: &[(usize, f64)]) {
        let numbers = [TAKE, f64::from(n), max_wait_us, buckets.len() as f64];
        Self::push(&mut self.steps, &numbers);
        for &(bucket, cost) in buckets {
            Self::push(&mut self.steps, &[(bucket + 1) as f64, cost]);
        }
    }

    /// Appends an operation on a bucket.
    pub(crate) fn op(&mut self, bucket: usize, op: Op) {
        op.encode(bucket, &mut self.steps);
    }

    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        self.buckets.append(&mut self.steps);
        self.buckets
    }
}

/// The result of a request, or of an operation that has one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) taken: Taken,
    /// Which of the request's buckets decided, counted from zero.
    pub(crate) which: usize,
}

/// The reply of one call.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    bytes: &'a [u8],
    buckets: usize,
}

impl<'a> Reply<'a> {
    /// Returns none if the length is not that of a call with this many buckets and answers.
    ///
    /// The numbers are not checked. They must be bounded by what was requested where they are used.
    pub(crate) fn new(bytes: &'a [u8], buckets: usize, answers: usize) -> Option<Self> {
        let numbers = 1 + 6 * buckets + 5 * answers;
        (bytes.len() == 8 * numbers).then_some(Self { bytes, buckets })
    }

    fn number(&self, index: usize) -> f64 {
        let mut number = [0; 8];
        number.copy_from_slice(&self.bytes[8 * index..8 * index + 8]);
        f64::from_le_bytes(number)
    }

    fn taken(&self, at: usize) -> Taken {
        Taken {
            now: self.number(at),
            granted: self.number(at + 1),
            last: self.number(at + 2),
            retry_after: self.number(at + 3),
        }
    }

    /// The server's time in microseconds since 1970, from which waits count; none if the time of a
    /// bucket is ahead of it.
    pub(crate) fn time(&self) -> Option<f64> {
        let time = self.number(0);
        (time > 0.0).then_some(time)
    }

    /// The result of the first request for a bucket.
    pub(crate) fn first(&self, bucket: usize) -> Answer {
        Answer {
            taken: self.taken(1 + 6 * bucket),
            which: 0,
        }
    }

    /// Level and returned tokens of a bucket after the call.
    pub(crate) fn level(&self, bucket: usize) -> (f64, f64) {
        let at = 1 + 6 * bucket + 4;
        (self.number(at), self.number(at + 1).max(0.0))
    }

    /// For how long a bucket is paused, in microseconds.
    pub(crate) fn pause_us(&self, bucket: usize) -> f64 {
        (-self.number(1 + 6 * bucket + 5)).max(0.0)
    }

    /// A bucket after the call, within the limits of its quota.
    pub(crate) fn state(&self, bucket: usize, params: BucketParams) -> BucketState {
        let (level, returned) = self.level(bucket);
        BucketState {
            level,
            returned,
            pause_us: self.pause_us(bucket),
        }
        .bounded(params)
    }

    /// The result of a later request or of an operation that has one, counted from zero.
    pub(crate) fn answer(&self, nth: usize) -> Answer {
        let at = 1 + 6 * self.buckets + 5 * nth;
        Answer {
            taken: self.taken(at),
            which: (self.number(at + 4) as usize).saturating_sub(1),
        }
    }
}

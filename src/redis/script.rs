//! The scripts, and the arguments and the reply of `acquire.lua` as bytes. No I/O.

use std::sync::OnceLock;

use crate::{
    bucket::{BucketParams, Taken},
    redis::{bucket_state::BucketState, class::period_us, op::Op},
    scope::Keyspace,
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

/// Adjacent buckets of one name and with equal parameters and first requests.
#[derive(Clone, Debug)]
struct Run {
    /// Where the name begins among the fields, and where it ends.
    name: (usize, usize),
    params: BucketParams,
    first: First,
}

/// `KEYS` and `ARGV` of one call: the buckets, each with its first request, then everything else.
///
/// Buckets count from zero here, and from one in the script.
#[derive(Clone, Debug)]
pub(crate) struct Arguments {
    pub(crate) keys: Vec<Vec<u8>>,
    /// The period of the class to which each pair of keys belongs, in microseconds.
    periods: Vec<f64>,
    /// All runs, then all steps.
    numbers: Vec<u8>,
    /// Where the runs end.
    runs_end: usize,
    last_run: Option<Run>,
    /// The fields of all buckets, without a gap, and where each of them ends.
    fields: Vec<u8>,
    ends: Vec<usize>,
}

impl Arguments {
    pub(crate) fn new(keyspace: &Keyspace) -> Self {
        Self::with_buckets(keyspace, 0)
    }

    /// Has room for this many buckets.
    pub(crate) fn with_buckets(keyspace: &Keyspace, buckets: usize) -> Self {
        let mut keys = Vec::with_capacity(3);
        keys.push(keyspace.directory());
        Self {
            keys,
            periods: Vec::new(),
            numbers: Vec::with_capacity(8 * RUN),
            runs_end: 0,
            last_run: None,
            fields: Vec::with_capacity(32 * buckets),
            ends: Vec::with_capacity(buckets),
        }
    }

    /// Appends the bucket of an identity. All buckets come before all steps.
    pub(crate) fn bucket(
        &mut self,
        keyspace: &Keyspace,
        id: &[u8],
        params: BucketParams,
        first: First,
    ) {
        let start = self.fields.len();
        let name = keyspace.push_field(id, &mut self.fields);
        self.add(keyspace, start, name, params, first);
    }

    /// Appends the bucket of a field, which begins with a name of `name` bytes.
    #[cfg(test)]
    pub(crate) fn field(
        &mut self,
        keyspace: &Keyspace,
        (field, name): (&[u8], usize),
        params: BucketParams,
        first: First,
    ) {
        let start = self.fields.len();
        self.fields.extend_from_slice(field);
        self.add(keyspace, start, name, params, first);
    }

    /// Appends a bucket that no scope can have.
    pub(crate) fn own_bucket(&mut self, keyspace: &Keyspace, name: &str, params: BucketParams) {
        let start = self.fields.len();
        let length = keyspace.push_own_field(name, &mut self.fields);
        self.add(keyspace, start, length, params, First::NONE);
    }

    /// The field that begins at `start` is complete, and its first `length` bytes are the name.
    fn add(
        &mut self,
        keyspace: &Keyspace,
        start: usize,
        length: usize,
        params: BucketParams,
        first: First,
    ) {
        debug_assert_eq!(self.numbers.len(), self.runs_end, "a bucket behind a step");
        self.ends.push(self.fields.len());
        let name = (start, start + length);
        if let Some(run) = &self.last_run
            && self.fields[run.name.0..run.name.1] == self.fields[name.0..name.1]
            && (run.params, run.first) == (params, first)
        {
            let count = &mut self.numbers[self.runs_end - 8 * RUN..][..8];
            let mut buckets = [0; 8];
            buckets.copy_from_slice(count);
            count.copy_from_slice(&(f64::from_le_bytes(buckets) + 1.0).to_le_bytes());
            return;
        }
        let period = period_us(params);
        let class = match self.periods.iter().position(|other| *other == period) {
            Some(class) => class,
            None => {
                self.periods.push(period);
                self.keys.extend(keyspace.class((period / 1e6) as u64));
                self.periods.len() - 1
            }
        };
        let numbers: [f64; RUN] = [
            1.0,
            length as f64,
            (2 + 2 * class) as f64,
            period,
            params.capacity,
            params.per_us,
            first.cost,
            f64::from(first.n),
            first.max_wait_us,
        ];
        push(&mut self.numbers, &numbers);
        self.runs_end = self.numbers.len();
        self.last_run = Some(Run {
            name,
            params,
            first,
        });
    }

    /// Appends `n` equal requests; each takes from all of these buckets (index, cost) or from none.
    pub(crate) fn take(&mut self, n: u32, max_wait_us: f64, buckets: &[(usize, f64)]) {
        let numbers = [TAKE, f64::from(n), max_wait_us, buckets.len() as f64];
        push(&mut self.numbers, &numbers);
        for &(bucket, cost) in buckets {
            push(&mut self.numbers, &[(bucket + 1) as f64, cost]);
        }
    }

    /// Appends an operation on a bucket.
    pub(crate) fn op(&mut self, bucket: usize, op: Op) {
        op.encode(bucket, &mut self.numbers);
    }

    /// The periods of the classes in which the buckets may be, in microseconds.
    pub(crate) fn periods(&self) -> &[f64] {
        &self.periods
    }

    /// How many buckets there are.
    pub(crate) fn buckets(&self) -> usize {
        self.ends.len()
    }

    /// The first of the script's arguments: all runs, then all steps.
    pub(crate) fn numbers(&self) -> &[u8] {
        &self.numbers
    }

    /// All steps, as bytes.
    #[cfg(test)]
    pub(crate) fn steps(&self) -> &[u8] {
        &self.numbers[self.runs_end..]
    }

    pub(crate) fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.fields[start..*end])
    }
}

/// Numbers in front of each run of buckets.
const RUN: usize = 9;

fn push(bytes: &mut Vec<u8>, numbers: &[f64]) {
    for number in numbers {
        bytes.extend_from_slice(&number.to_le_bytes());
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
    /// The buckets with details, and where these are.
    details: Vec<(usize, usize)>,
    answers: usize,
}

impl<'a> Reply<'a> {
    /// Returns none if the length is not that of a call with this many buckets and answers.
    ///
    /// The numbers are not checked. They must be bounded by what was requested where they are used.
    pub(crate) fn new(bytes: &'a [u8], buckets: usize, answers: usize) -> Option<Self> {
        let mut reply = Self {
            bytes,
            details: Vec::new(),
            answers: 1 + buckets,
        };
        if bytes.len() < 8 * reply.answers {
            return None;
        }
        for bucket in 0..buckets {
            if reply.number(1 + bucket) == f64::INFINITY {
                reply.details.push((bucket, reply.answers));
                reply.answers += 6;
            }
        }
        let numbers = reply.answers + 5 * answers;
        (bytes.len() == 8 * numbers).then_some(reply)
    }

    /// Where the details of a bucket are, if it has any.
    fn details(&self, bucket: usize) -> Option<usize> {
        let details = self
            .details
            .binary_search_by_key(&bucket, |(bucket, _)| *bucket);
        Some(self.details[details.ok()?].1)
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

    /// The result of the first request for a bucket, which is of `n` callers.
    pub(crate) fn first(&self, bucket: usize, n: u32) -> Answer {
        let taken = match self.details(bucket) {
            Some(at) => self.taken(at),
            None => Taken {
                now: f64::from(n),
                granted: f64::from(n),
                ..Taken::default()
            },
        };
        Answer { taken, which: 0 }
    }

    /// Level and returned tokens of a bucket after the call.
    pub(crate) fn level(&self, bucket: usize) -> (f64, f64) {
        match self.details(bucket) {
            Some(at) => (self.number(at + 4), self.number(at + 5).max(0.0)),
            None => (self.number(1 + bucket), 0.0),
        }
    }

    /// For how long a bucket is paused, in microseconds.
    pub(crate) fn pause_us(&self, bucket: usize) -> f64 {
        let at = self.details(bucket);
        at.map_or(0.0, |at| (-self.number(at + 5)).max(0.0))
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
        let at = self.answers + 5 * nth;
        Answer {
            taken: self.taken(at),
            which: (self.number(at + 4) as usize).saturating_sub(1),
        }
    }
}

//! What a call does, and what it replies.

use super::{Call, Located, Step, Storage, Stored};
use crate::{
    bucket::{Bucket, BucketParams, Taken, TakenAll, take_all},
    redis::{op::Op, script::Answer},
};

/// A bucket that a call wrote: its index, the period of its class in seconds, and the length of the
/// value in bytes.
pub(crate) type Written = (usize, u64, usize);

/// What a call replies, and what it wrote.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// The result of the first request for each key.
    pub(crate) firsts: Vec<Taken>,
    /// The results of the steps that have one.
    pub(crate) answers: Vec<Answer>,
    /// Level and returned tokens of each key.
    pub(crate) levels: Vec<(f64, f64)>,
    /// For how long each key is paused, in microseconds.
    pub(crate) pauses: Vec<f64>,
    pub(crate) written: Vec<Written>,
    /// The time of a bucket is ahead of the server's.
    pub(crate) is_ahead: bool,
}

impl Outcome {
    /// The reply of the script.
    pub(crate) fn reply(&self, now: f64) -> Vec<u8> {
        let numbers = |taken: &Taken| [taken.now, taken.granted, taken.last, taken.retry_after];
        let mut reply = vec![if self.is_ahead { 0.0 } else { now }];
        let mut details = Vec::new();
        let buckets = self.firsts.iter().zip(&self.levels).zip(&self.pauses);
        for ((first, (level, returned)), pause) in buckets {
            let all_at_once = first.last == 0.0 && first.retry_after == 0.0;
            if all_at_once && *returned == 0.0 && *pause == 0.0 {
                reply.push(*level);
                continue;
            }
            reply.push(f64::INFINITY);
            details.extend(numbers(first));
            details.extend([*level, if *pause > 0.0 { -pause } else { *returned }]);
        }
        reply.extend(details);
        for Answer { taken, which } in &self.answers {
            reply.extend(numbers(taken));
            reply.push((which + 1) as f64);
        }
        reply.into_iter().flat_map(f64::to_le_bytes).collect()
    }
}

/// All buckets of a Redis.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReferenceModel {
    pub(crate) storage: Storage,
}

/// A bucket during a call.
struct Loaded {
    bucket: Bucket,
    params: BucketParams,
    widest: BucketParams,
    located: Located,
    /// Whether it is to be written.
    changed: bool,
}

impl ReferenceModel {
    /// Executes a call at `now`, in microseconds by the server's clock.
    ///
    /// 1. All buckets are loaded and refilled.
    /// 2. The first request for each is decided.
    /// 3. All steps follow in order, until one stops the call.
    /// 4. Buckets that changed are written.
    pub(crate) fn call(&mut self, call: &Call, now: f64) -> Outcome {
        let keys = call.keys.iter();
        let mut buckets: Vec<_> = keys
            .map(|(key, params)| self.load(key, *params, now, call.recovered))
            .collect();
        let mut firsts = Vec::new();
        for (loaded, first) in buckets.iter_mut().zip(&call.firsts) {
            firsts.push(match first.n {
                0 => Taken::default(),
                n => loaded.take(first.cost, n, first.max_wait_us),
            });
        }
        let mut answers = Vec::new();
        for step in &call.steps {
            match step {
                Step::Take { n, max_wait, costs } => {
                    answers.push(take(&mut buckets, *n, *max_wait, costs));
                }
                Step::Op(bucket, op) => match buckets[*bucket].apply(*op) {
                    Effect::Done => {}
                    Effect::Answer(answer) => answers.push(answer),
                    Effect::Stop => break,
                },
            }
        }
        let mut written = Vec::new();
        for (index, loaded) in buckets.iter().enumerate() {
            if loaded.changed {
                let value = Stored {
                    bucket: loaded.bucket.clone(),
                    widest: loaded.widest,
                };
                let length = value.length();
                let (key, located) = (&call.keys[index].0, &loaded.located);
                let storage = &mut self.storage;
                let period = storage.write(key, located, value, now, call.recovered);
                written.push((index, period, length));
            }
        }
        let buckets = || buckets.iter().map(|loaded| &loaded.bucket);
        Outcome {
            firsts,
            answers,
            levels: buckets()
                .map(|bucket| (bucket.free(), bucket.returned))
                .collect(),
            pauses: buckets().map(Bucket::pause_left).collect(),
            written,
            is_ahead: buckets().any(|bucket| bucket.at > now),
        }
    }

    /// A missing or implausible value is a full bucket.
    fn load(&mut self, key: &str, params: BucketParams, now: f64, recovered: f64) -> Loaded {
        let located = self.storage.find(key, params, now);
        let stored = located.value.as_ref();
        let stored = stored.filter(|stored| stored.is_plausible(params));
        let mut bucket =
            stored.map_or_else(|| Bucket::full(now, params), |stored| stored.bucket.clone());
        // A corrected clock must be written even if the request is rejected.
        let changed = bucket.advance_in_recovery(now, params, recovered);
        let mut widest = stored.map_or(params, |stored| BucketParams {
            capacity: stored.widest.capacity.max(params.capacity),
            per_us: stored.widest.per_us.min(params.per_us),
        });
        if bucket.level >= widest.capacity && bucket.last_due == 0.0 && bucket.paused_until == 0.0 {
            widest = params;
        }
        Loaded {
            bucket,
            params,
            widest,
            located,
            changed,
        }
    }
}

/// What an operation did, apart from its bucket.
enum Effect {
    Done,
    Answer(Answer),
    /// The rest of the call is skipped.
    Stop,
}

impl Loaded {
    fn take(&mut self, cost: f64, n: u32, max_wait: f64) -> Taken {
        let before = self.bucket.clone();
        let taken = self.bucket.take(cost, n, max_wait, self.params);
        self.changed |= self.bucket != before;
        taken
    }

    fn apply(&mut self, op: Op) -> Effect {
        let (bucket, params) = (&mut self.bucket, self.params);
        match op {
            Op::GiveBack { tokens } => bucket.give_back(tokens, params),
            Op::Charge { tokens } => bucket.charge(tokens, params),
            Op::Reset => *bucket = Bucket::full(bucket.at, params),
            Op::Look => return Effect::Done,
            Op::CapLevel { tokens } => bucket.cap_level(tokens),
            Op::EmptyOrStop if bucket.level < params.capacity => return Effect::Stop,
            Op::EmptyOrStop => bucket.level = 0.0,
            Op::WriteBack {
                tokens,
                wait_us,
                largest_cost,
            } => bucket.write_back(tokens, wait_us, largest_cost),
            Op::Lease { tokens } => {
                let ahead = bucket.lease(tokens, params);
                self.changed |= ahead > 0.0;
                return Effect::Answer(answer(ahead, ahead, 0.0, 0.0, 0));
            }
            Op::Pause { us } => bucket.pause(us, params),
            Op::Undo(reservation) => bucket.undo(reservation, params),
        }
        self.changed = true;
        Effect::Done
    }
}

fn take(buckets: &mut [Loaded], n: u32, max_wait: f64, costs: &[(usize, f64)]) -> Answer {
    if let &[(bucket, cost)] = costs {
        let taken = buckets[bucket].take(cost, n, max_wait);
        return Answer { taken, which: 0 };
    }
    // In the order of the request, which need not be that of the keys.
    let mut taken: Vec<Bucket> = costs
        .iter()
        .map(|&(bucket, _)| buckets[bucket].bucket.clone())
        .collect();
    let named = taken.iter_mut().zip(costs);
    let all = take_all(
        named.map(|(bucket, &(index, cost))| (bucket, cost, buckets[index].params)),
        max_wait,
    );
    for (bucket, &(index, _)) in taken.into_iter().zip(costs) {
        buckets[index].changed |= bucket != buckets[index].bucket;
        buckets[index].bucket = bucket;
    }
    match all {
        TakenAll::All => answer(1.0, 1.0, 0.0, 0.0, 0),
        TakenAll::Slowest { which, wait, .. } => answer(0.0, 1.0, wait, 0.0, which),
        TakenAll::Rejected { which, retry_after } => answer(0.0, 0.0, 0.0, retry_after, which),
    }
}

fn answer(now: f64, granted: f64, last: f64, retry_after: f64, which: usize) -> Answer {
    Answer {
        taken: Taken {
            now,
            granted,
            last,
            retry_after,
        },
        which,
    }
}

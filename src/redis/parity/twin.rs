//! What Redis should hold, and what one call should do to it.

use std::collections::HashMap;

use crate::bucket::{Bucket, Taken, TakenAll, Terms, take_all};
use crate::redis::script::{Answer, Argument};

#[derive(Clone, Debug)]
pub(super) enum Command {
    Take {
        n: u32,
        max_wait: f64,
        /// Index of the key in the call, from zero, and cost.
        of: Vec<(usize, f64)>,
    },
    GiveBack(usize, f64),
    Charge(usize, f64),
    /// Tokens, the wait until the last promised turn, the largest cost.
    Pay(usize, f64, f64, f64),
    Reset(usize),
    Look(usize),
    Lower(usize, f64),
    /// The rest only where this bucket is full.
    Once(usize),
}

#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) keys: Vec<(String, Terms)>,
    pub(super) commands: Vec<Command>,
    /// The part of all processes that is back after an outage.
    pub(super) back: f64,
}

impl Call {
    pub(super) fn new(key: &str, terms: Terms, commands: Vec<Command>) -> Self {
        Self::of(vec![(key.to_owned(), terms)], commands)
    }

    pub(super) fn of(keys: Vec<(String, Terms)>, commands: Vec<Command>) -> Self {
        Self {
            keys,
            commands,
            back: 1.0,
        }
    }

    pub(super) fn takes(&self) -> usize {
        let commands = self.commands.iter();
        commands
            .filter(|c| matches!(c, Command::Take { .. }))
            .count()
    }

    pub(super) fn argument(&self) -> Vec<u8> {
        let mut argument = Argument::default();
        for (_, terms) in &self.keys {
            argument.key(*terms);
        }
        for command in &self.commands {
            match command {
                Command::Take { n, max_wait, of } => {
                    let of = of.iter().map(|&(index, cost)| (index + 1, cost));
                    argument.take(*n, *max_wait, of);
                }
                Command::GiveBack(index, tokens) => argument.give_back(index + 1, *tokens),
                Command::Charge(index, tokens) => argument.charge(index + 1, *tokens),
                Command::Pay(index, tokens, wait, big) => {
                    argument.pay(index + 1, *tokens, *wait, *big);
                }
                Command::Reset(index) => argument.reset(index + 1),
                Command::Look(index) => argument.look(index + 1),
                Command::Lower(index, tokens) => argument.lower(index + 1, *tokens),
                Command::Once(index) => argument.once(index + 1),
            }
        }
        argument.into_bytes()
    }
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) bucket: Bucket,
    /// The largest capacity and the smallest rate by which it is known.
    pub(super) widest: Terms,
    /// When Redis forgets it, in milliseconds.
    pub(super) expires: f64,
}

/// A key that a call wrote: its index, how long it must live, and how long the value is.
pub(super) type Written = (usize, f64, usize);

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) answers: Vec<Answer>,
    /// Level and pool of each key.
    pub(super) levels: Vec<(f64, f64)>,
    pub(super) written: Vec<Written>,
}

#[derive(Debug, Default)]
pub(super) struct Twin {
    pub(super) keys: HashMap<String, Stored>,
}

impl Twin {
    pub(super) fn call(&mut self, call: &Call, now: f64) -> Outcome {
        let (mut buckets, mut widest, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        for (key, terms) in &call.keys {
            let stored = self.keys.get(key);
            let mut bucket = stored.map_or(Bucket::full(now, *terms), |stored| stored.bucket);
            changed.push(bucket.visit_by(now, *terms, call.back));
            buckets.push(bucket);
            widest.push(stored.map_or(*terms, |stored| Terms {
                cap: stored.widest.cap.max(terms.cap),
                per_us: stored.widest.per_us.min(terms.per_us),
            }));
        }
        let mut answers = Vec::new();
        let terms: Vec<Terms> = call.keys.iter().map(|(_, terms)| *terms).collect();
        for command in &call.commands {
            match command {
                Command::Take { n, max_wait, of } => {
                    let before = buckets.clone();
                    answers.push(take(&mut buckets, &terms, *n, *max_wait, of));
                    for (index, changed) in changed.iter_mut().enumerate() {
                        *changed |= buckets[index] != before[index];
                    }
                }
                Command::GiveBack(index, tokens) => {
                    buckets[*index].give_back(*tokens, terms[*index]);
                    changed[*index] = true;
                }
                Command::Charge(index, tokens) => {
                    buckets[*index].charge(*tokens, terms[*index]);
                    changed[*index] = true;
                }
                Command::Pay(index, tokens, wait, big) => {
                    buckets[*index].pay(*tokens, *wait, *big);
                    changed[*index] = true;
                }
                Command::Reset(index) => {
                    let at = buckets[*index].at;
                    buckets[*index] = Bucket::full(at, terms[*index]);
                    changed[*index] = true;
                }
                Command::Look(_) => {}
                Command::Lower(index, tokens) => {
                    buckets[*index].lower(*tokens);
                    changed[*index] = true;
                }
                Command::Once(index) => {
                    if buckets[*index].level < terms[*index].cap {
                        break;
                    }
                    buckets[*index].level = 0.0;
                    changed[*index] = true;
                }
            }
        }
        let mut written = Vec::new();
        for (index, (key, _)) in call.keys.iter().enumerate() {
            if !changed[index] {
                continue;
            }
            let (bucket, widest) = (buckets[index], widest[index]);
            let slower = if call.back < 1.0 { 3e6 } else { 0.0 };
            let px = bucket.ttl_ms(now - slower, widest);
            let length = if bucket.tail > bucket.at { 56 } else { 32 };
            written.push((index, px, length));
            let stored = Stored {
                bucket,
                widest,
                expires: (now / 1_000.0).floor() + px,
            };
            self.keys.insert(key.clone(), stored);
        }
        let levels = buckets.iter().map(|bucket| (bucket.level, bucket.pool));
        Outcome {
            answers,
            levels: levels.collect(),
            written,
        }
    }
}

fn take(
    buckets: &mut [Bucket],
    terms: &[Terms],
    n: u32,
    max_wait: f64,
    of: &[(usize, f64)],
) -> Answer {
    if let &[(index, cost)] = of {
        let taken = buckets[index].take(cost, n, max_wait, terms[index]);
        return Answer { taken, which: 0 };
    }
    // In the order of the demand, which need not be that of the keys.
    let mut asked: Vec<Bucket> = of.iter().map(|&(index, _)| buckets[index]).collect();
    let all = take_all(
        asked
            .iter_mut()
            .zip(of)
            .map(|(bucket, &(index, cost))| (bucket, cost, terms[index])),
        max_wait,
    );
    for (bucket, &(index, _)) in asked.into_iter().zip(of) {
        buckets[index] = bucket;
    }
    let answer = |now, granted, last, retry_after, which| Answer {
        taken: Taken {
            now,
            granted,
            last,
            retry_after,
        },
        which,
    };
    match all {
        TakenAll::All => answer(1.0, 1.0, 0.0, 0.0, 0),
        TakenAll::Slowest { which, wait } => answer(0.0, 1.0, wait, 0.0, which),
        TakenAll::Refused { which, retry_after } => answer(0.0, 0.0, 0.0, retry_after, which),
    }
}

//! What Redis should hold, and what one call of `acquire.lua` should do to it.

use std::collections::HashMap;

use crate::bucket::{Bucket, BucketParams, Reservation, Taken, TakenAll, take_all};

use crate::redis::script::{Answer, Argument, First};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command {
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
    HoldBack(usize, f64),
    /// The rest only where this bucket is full.
    Once(usize),
    Lease(usize, f64),
    Undo(usize, Reservation),
}

impl Command {
    /// The keys that it is about.
    fn indexes(&self) -> impl Iterator<Item = usize> {
        let (several, one) = match self {
            Self::Take { of, .. } => (&of[..], None),
            Self::GiveBack(index, _)
            | Self::Charge(index, _)
            | Self::Pay(index, ..)
            | Self::Reset(index)
            | Self::Look(index)
            | Self::Lower(index, _)
            | Self::HoldBack(index, _)
            | Self::Once(index)
            | Self::Undo(index, _)
            | Self::Lease(index, _) => (&[][..], Some(*index)),
        };
        several.iter().map(|(index, _)| *index).chain(one)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) keys: Vec<(String, BucketParams)>,
    /// Of each key.
    pub(crate) firsts: Vec<First>,
    pub(crate) commands: Vec<Command>,
    /// The part of all processes that is back after an outage.
    pub(crate) back: f64,
}

impl Call {
    pub(crate) fn new(key: &str, params: BucketParams, commands: Vec<Command>) -> Self {
        Self::of(vec![(key.to_owned(), params)], commands)
    }

    pub(crate) fn of(keys: Vec<(String, BucketParams)>, commands: Vec<Command>) -> Self {
        Self {
            firsts: vec![First::NONE; keys.len()],
            keys,
            commands,
            back: 1.0,
        }
    }

    /// The same call, where the first demand on a key, if nothing comes before it and it takes
    /// from no other, goes with the key.
    pub(crate) fn hoisted(mut self) -> Self {
        let mut touched = vec![false; self.keys.len()];
        let mut stopped = false;
        let firsts = &mut self.firsts;
        self.commands.retain(|command| {
            let &Command::Take {
                n,
                max_wait,
                ref of,
            } = command
            else {
                stopped |= matches!(command, Command::Once(_));
                command.indexes().for_each(|index| touched[index] = true);
                return true;
            };
            match of[..] {
                [(index, cost)] if !touched[index] && !stopped => {
                    firsts[index] = First {
                        cost,
                        n,
                        max_wait_us: max_wait,
                    };
                    touched[index] = true;
                    false
                }
                _ => {
                    command.indexes().for_each(|index| touched[index] = true);
                    true
                }
            }
        });
        self
    }

    pub(crate) fn takes(&self) -> usize {
        let commands = self.commands.iter();
        commands
            .filter(|c| matches!(c, Command::Take { .. } | Command::Lease(..)))
            .count()
    }

    pub(crate) fn argument(&self) -> Vec<u8> {
        let mut argument = Argument::default();
        for ((_, params), first) in self.keys.iter().zip(&self.firsts) {
            argument.key(*params, *first);
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
                    argument.write_back(index + 1, *tokens, *wait, *big);
                }
                Command::Reset(index) => argument.reset(index + 1),
                Command::Look(index) => argument.look(index + 1),
                Command::Lower(index, tokens) => argument.cap_level(index + 1, *tokens),
                Command::HoldBack(index, us) => argument.pause(index + 1, *us),
                Command::Once(index) => argument.once(index + 1),
                Command::Lease(index, tokens) => argument.lease(index + 1, *tokens),
                Command::Undo(index, gone) => argument.undo(index + 1, *gone),
            }
        }
        argument.into_bytes()
    }

    /// What `argument` says of `keys`, as the script reads it.
    pub(crate) fn read(keys: &[String], argument: &[u8], back: f64) -> Self {
        let mut numbers = argument.chunks_exact(8).map(|number| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(number);
            f64::from_le_bytes(bytes)
        });
        let mut next = || numbers.next();
        let mut call = Self {
            keys: Vec::with_capacity(keys.len()),
            firsts: Vec::with_capacity(keys.len()),
            commands: Vec::new(),
            back,
        };
        let short = "an argument of whole commands";
        for key in keys {
            let mut number = || next().expect(short);
            let (cap, per_us) = (number(), number());
            call.keys.push((
                key.clone(),
                BucketParams {
                    capacity: cap,
                    per_us,
                },
            ));
            let (cost, n, max_wait_us) = (number(), number() as u32, number());
            call.firsts.push(First {
                cost,
                n,
                max_wait_us,
            });
        }
        while let Some(op) = next() {
            let mut number = || next().expect(short);
            let command = if op == 0.0 {
                let (n, max_wait, m) = (number() as u32, number(), number() as usize);
                let of = (0..m).map(|_| (number() as usize - 1, number()));
                Command::Take {
                    n,
                    max_wait,
                    of: of.collect(),
                }
            } else {
                let index = number() as usize - 1;
                match op as u32 {
                    1 => Command::GiveBack(index, number()),
                    2 => Command::Charge(index, number()),
                    3 => Command::Reset(index),
                    4 => Command::Look(index),
                    5 => Command::Lower(index, number()),
                    6 => Command::Once(index),
                    7 => Command::Pay(index, number(), number(), number()),
                    8 => Command::Lease(index, number()),
                    9 => Command::HoldBack(index, number()),
                    10 => {
                        let (tokens, until, from) = (number(), number(), number());
                        let gone = Reservation {
                            from,
                            until,
                            tokens,
                        };
                        Command::Undo(index, gone)
                    }
                    op => panic!("no command {op}"),
                }
            };
            call.commands.push(command);
        }
        call
    }
}

/// One key.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) bucket: Bucket,
    /// The largest capacity and the smallest rate by which it is known.
    pub(crate) widest: BucketParams,
    /// When Redis forgets it, in milliseconds.
    pub(crate) expires: f64,
    /// Until when, in microseconds, the value says that it is kept.
    pub(crate) kept: f64,
}

impl Stored {
    /// What the script makes of a value that nobody may have written.
    pub(crate) fn read(value: &[u8]) -> Option<Self> {
        let mut numbers = [0.0; 10];
        let is_one = match value.len() {
            40 | 64 => true,
            length => length >= 80 && (length - 80).is_multiple_of(24),
        };
        if !is_one {
            return None;
        }
        for (number, bytes) in numbers.iter_mut().zip(value.chunks_exact(8)) {
            *number = f64::from_le_bytes(bytes.try_into().ok()?);
        }
        let [level, at, cap, per_us, kept, tail, big, pool, held, by] = numbers;
        let gaps = value.get(80..).unwrap_or_default().chunks_exact(24);
        let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let cancelled: Vec<_> = gaps
            .map(|gap| Reservation {
                from: number(&gap[..8]),
                until: number(&gap[8..16]),
                tokens: number(&gap[16..]),
            })
            .collect();
        let gaps = cancelled.iter();
        let gaps = gaps.flat_map(|gap| [gap.from, gap.until, gap.tokens]);
        let all_finite = numbers.into_iter().chain(gaps).all(f64::is_finite);
        all_finite.then_some(Self {
            bucket: Bucket {
                level,
                at,
                last_due: tail,
                largest_cost: big,
                returned: pool,
                paused_until: held,
                pause_rate: by,
                gaps: cancelled,
            },
            widest: BucketParams {
                capacity: cap,
                per_us,
            },
            expires: f64::INFINITY,
            kept,
        })
    }

    /// Whether a call may have written it: no amount below zero, no wait of 300 years, no debt of
    /// as many at a ten-thousandth of the rate.
    fn is_plausible(&self, params: BucketParams) -> bool {
        let (bucket, widest) = (&self.bucket, self.widest);
        widest.per_us > 0.0
            && widest.capacity > 0.0
            && widest.capacity <= 1e100
            && bucket.largest_cost >= 0.0
            && bucket.returned >= 0.0
            && bucket.pause_rate >= 0.0
            && bucket.pause_rate <= 1e100
            && bucket.last_due - bucket.at <= 1e16
            && bucket.paused_until - bucket.at <= 1e16
            && bucket.level >= -2.0 * widest.capacity - 1e20 * (params.per_us + bucket.pause_rate)
            && bucket.gaps.len() <= 64
            && bucket.gaps.is_sorted_by(|a, b| a.until <= b.until)
            && bucket.gaps.iter().all(|gap| {
                gap.from < gap.until
                    && gap.until <= bucket.last_due
                    && gap.tokens > 0.0
                    && gap.tokens <= widest.capacity * 1e10
            })
    }

    /// Whether Redis has forgotten it.
    pub(crate) fn is_expired(&self, now: f64) -> bool {
        (now / 1_000.0).floor() > self.expires
    }
}

/// A key that a call wrote: its index, for how long anew (0: as long as before), and how long the
/// value is.
pub(crate) type Written = (usize, f64, usize);

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// Of each key.
    pub(crate) firsts: Vec<Taken>,
    pub(crate) answers: Vec<Answer>,
    /// Level and pool of each key.
    pub(crate) levels: Vec<(f64, f64)>,
    /// For how long each key is held back, in microseconds.
    pub(crate) held: Vec<f64>,
    pub(crate) written: Vec<Written>,
    /// The time of a bucket is ahead of the server's.
    pub(crate) ahead: bool,
}

impl Outcome {
    /// As the script would reply.
    pub(crate) fn reply(&self, now: f64) -> Vec<u8> {
        let numbers = |taken: &Taken| [taken.now, taken.granted, taken.last, taken.retry_after];
        let mut reply = vec![if self.ahead { 0.0 } else { now }];
        for ((first, (level, pool)), held) in self.firsts.iter().zip(&self.levels).zip(&self.held) {
            reply.extend(numbers(first));
            reply.extend([*level, if *held > 0.0 { -held } else { *pool }]);
        }
        for Answer { taken, which } in &self.answers {
            reply.extend(numbers(taken));
            reply.push((which + 1) as f64);
        }
        reply.into_iter().flat_map(f64::to_le_bytes).collect()
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ReferenceModel {
    pub(crate) keys: HashMap<String, Stored>,
}

impl ReferenceModel {
    pub(crate) fn call(&mut self, call: &Call, now: f64) -> Outcome {
        let (mut buckets, mut widest, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        let mut known = Vec::new();
        for (key, params) in &call.keys {
            let stored = self.keys.get(key);
            let stored = stored.filter(|stored| stored.is_plausible(*params));
            let mut bucket = stored.map_or_else(
                || Bucket::full(now, *params),
                |stored| stored.bucket.clone(),
            );
            changed.push(bucket.advance_in_recovery(now, *params, call.back));
            buckets.push(bucket);
            known.push(stored.cloned());
            widest.push(stored.map_or(*params, |stored| BucketParams {
                capacity: stored.widest.capacity.max(params.capacity),
                per_us: stored.widest.per_us.min(params.per_us),
            }));
        }
        let mut answers = Vec::new();
        let params: Vec<BucketParams> = call.keys.iter().map(|(_, params)| *params).collect();
        let mut firsts = Vec::new();
        for (index, first) in call.firsts.iter().enumerate() {
            let &First {
                cost,
                n,
                max_wait_us,
            } = first;
            let before = buckets[index].clone();
            firsts.push(match n {
                0 => Taken::default(),
                n => buckets[index].take(cost, n, max_wait_us, params[index]),
            });
            changed[index] |= buckets[index] != before;
        }
        for command in &call.commands {
            match command {
                Command::Take { n, max_wait, of } => {
                    let before = buckets.clone();
                    answers.push(take(&mut buckets, &params, *n, *max_wait, of));
                    for (index, changed) in changed.iter_mut().enumerate() {
                        *changed |= buckets[index] != before[index];
                    }
                }
                Command::GiveBack(index, tokens) => {
                    buckets[*index].give_back(*tokens, params[*index]);
                    changed[*index] = true;
                }
                Command::Charge(index, tokens) => {
                    buckets[*index].charge(*tokens, params[*index]);
                    changed[*index] = true;
                }
                Command::Pay(index, tokens, wait, big) => {
                    buckets[*index].write_back(*tokens, *wait, *big);
                    changed[*index] = true;
                }
                Command::Reset(index) => {
                    let at = buckets[*index].at;
                    buckets[*index] = Bucket::full(at, params[*index]);
                    changed[*index] = true;
                }
                Command::Look(_) => {}
                Command::Lower(index, tokens) => {
                    buckets[*index].cap_level(*tokens);
                    changed[*index] = true;
                }
                Command::Lease(index, tokens) => {
                    let ahead = buckets[*index].lease(*tokens, params[*index]);
                    changed[*index] |= ahead > 0.0;
                    answers.push(Answer {
                        taken: Taken {
                            now: ahead,
                            granted: ahead,
                            ..Taken::default()
                        },
                        which: 0,
                    });
                }
                Command::HoldBack(index, us) => {
                    buckets[*index].pause(*us, params[*index]);
                    changed[*index] = true;
                }
                Command::Undo(index, gone) => {
                    buckets[*index].undo(*gone, params[*index]);
                    changed[*index] = true;
                }
                Command::Once(index) => {
                    if buckets[*index].level < params[*index].capacity {
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
            let (bucket, widest) = (buckets[index].clone(), widest[index]);
            let slower = if call.back < 1.0 { 10e6 } else { 0.0 };
            let stored = &known[index];
            let mut kept = stored.as_ref().map_or(0.0, |stored| stored.kept);
            let px = bucket.ttl_ms(now - slower, kept - now, widest);
            if let Some(px) = px {
                kept = now + (px - 1.0) * 1_000.0;
            }
            let gaps = bucket.gaps.len();
            let length = if gaps > 0 {
                80 + 24 * gaps
            } else if bucket.paused_until > bucket.at {
                80
            } else if bucket.last_due > bucket.at {
                64
            } else {
                40
            };
            written.push((index, px.unwrap_or_default(), length));
            let expires = match (px, stored) {
                (None, Some(stored)) => stored.expires,
                _ => (now / 1_000.0).floor() + px.unwrap_or_default(),
            };
            let stored = Stored {
                bucket,
                widest,
                expires,
                kept,
            };
            self.keys.insert(key.clone(), stored);
        }
        let levels = buckets
            .iter()
            .map(|bucket| (bucket.free(), bucket.returned));
        Outcome {
            firsts,
            answers,
            levels: levels.collect(),
            held: buckets.iter().map(Bucket::pause_left).collect(),
            written,
            ahead: buckets.iter().any(|bucket| bucket.at > now),
        }
    }
}

fn take(
    buckets: &mut [Bucket],
    params: &[BucketParams],
    n: u32,
    max_wait: f64,
    of: &[(usize, f64)],
) -> Answer {
    if let &[(index, cost)] = of {
        let taken = buckets[index].take(cost, n, max_wait, params[index]);
        return Answer { taken, which: 0 };
    }
    // In the order of the demand, which need not be that of the keys.
    let mut asked: Vec<Bucket> = of
        .iter()
        .map(|&(index, _)| buckets[index].clone())
        .collect();
    let all = take_all(
        asked
            .iter_mut()
            .zip(of)
            .map(|(bucket, &(index, cost))| (bucket, cost, params[index])),
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
        TakenAll::Slowest { which, wait, .. } => answer(0.0, 1.0, wait, 0.0, which),
        TakenAll::Rejected { which, retry_after } => answer(0.0, 0.0, 0.0, retry_after, which),
    }
}

//! What goes out as one call: merging, encoding, and telling everybody the answer.

use std::{collections::VecDeque, hash::BuildHasher, sync::Arc};

use hashbrown::{DefaultHashBuilder, HashTable};
use tokio::{sync::oneshot, time::Instant};

use super::{
    batcher::Shared,
    command::{Asker, Books, Command, Pending, Wire},
    known::Known,
    script::{Argument, Reply},
};
use crate::{
    bucket::Terms,
    clock::from_us,
    decision::{Decision, Failure, FailureKind},
    scope::{BucketId, Scope},
};

/// Redis runs one script at a time: more buckets in one would hold up its other users.
const MOST_BUCKETS: usize = 128;

/// Commands in one call. Equal demands are merged, so that most of these cost Redis nothing.
const MOST_COMMANDS: usize = 16_384;

/// What goes out as one call.
pub(super) struct Batch<A: Asker> {
    /// Of each rate, as long as some processes live from their shares.
    part: f64,
    ids: Vec<BucketId>,
    /// The whole quotas.
    terms: Vec<Terms>,
    /// Per bucket, the merged demand that the next equal one may join.
    open: Vec<Option<usize>>,
    steps: Vec<Step<A>>,
    takes: usize,
}

enum Step<A: Asker> {
    Take {
        askers: Vec<Pending<A>>,
        max_wait_us: f64,
        /// Bucket and cost.
        from: Vec<(usize, f64)>,
    },
    GiveBack(usize, Scope, f64),
    Charge(usize, Scope, f64),
    Reset(usize, oneshot::Sender<Result<f64, Failure>>),
    Look(usize, oneshot::Sender<Result<f64, Failure>>),
}

impl<A: Asker> Batch<A> {
    fn new(part: f64) -> Self {
        Self {
            part,
            ids: Vec::new(),
            terms: Vec::new(),
            open: Vec::new(),
            steps: Vec::new(),
            takes: 0,
        }
    }

    pub(super) fn build<W: Wire>(
        commands: &mut VecDeque<Command<A>>,
        shared: &Shared<A, W>,
    ) -> Self {
        let mut batch = Self::new(shared.wire.part());
        let mut index = Index::default();
        let mut left = MOST_COMMANDS;
        let (now, patience) = (Instant::now(), shared.wire.patience());
        while let Some(command) = commands.front() {
            let scopes = match command {
                Command::Take(Pending(Some(asker)), since)
                    if asker.is_wanted() && now - *since <= patience =>
                {
                    asker.scopes()
                }
                Command::Take(..) => {
                    // Cancelled before it was sent: nothing was taken, nobody listens. Or it
                    // has waited as long for its call as the call itself may take.
                    if let Some(Command::Take(asker, _)) = commands.pop_front() {
                        asker.answer(Err(Failure::new(
                            FailureKind::Overloaded,
                            "Redis is too slow for all the demands that are queued",
                        )));
                    }
                    continue;
                }
                Command::GiveBack(scope, _)
                | Command::Charge(scope, _)
                | Command::Reset(scope, _)
                | Command::Look(scope, _) => std::slice::from_ref(scope),
            };
            if left == 0 || (batch.ids.len() + scopes.len() > MOST_BUCKETS && !batch.ids.is_empty())
            {
                break;
            }
            let Some(places) = batch.places(scopes, &mut index, &shared.salt) else {
                if !batch.steps.is_empty() {
                    // The same bucket by another quota: that is another call.
                    break;
                }
                // By two quotas in one demand. Nobody asks for that; kept, it would hold up
                // everybody behind it for ever. Dropped, it is answered.
                drop(commands.pop_front());
                (batch, index) = (Self::new(batch.part), Index::default());
                continue;
            };
            left -= 1;
            if let Some(command) = commands.pop_front() {
                batch.add(command, &places);
            }
        }
        batch
    }

    /// The places of these buckets in this batch, added where they are new; none of them, where
    /// one is known by another quota.
    fn places(
        &mut self,
        scopes: &[Scope],
        index: &mut Index,
        salt: &[u8; 32],
    ) -> Option<Vec<usize>> {
        let known = self.ids.len();
        let mut places = Vec::with_capacity(scopes.len());
        for scope in scopes {
            let (id, terms) = (scope.id(salt), terms_of(scope));
            let place = index.find_or_insert(&mut self.ids, &id);
            if place == self.terms.len() {
                self.terms.push(terms);
                self.open.push(None);
            } else if self.terms[place] != terms {
                // Buckets that this demand added stay; they are only looked at.
                debug_assert!(known <= self.ids.len());
                return None;
            }
            places.push(place);
        }
        Some(places)
    }

    fn add(&mut self, command: Command<A>, places: &[usize]) {
        let place = places[0];
        match command {
            Command::Take(asker, _) => {
                let Some((scopes, max_wait_us)) = asker
                    .0
                    .as_ref()
                    .map(|asker| (asker.scopes(), asker.max_wait_us()))
                else {
                    return;
                };
                let from: Vec<_> = places
                    .iter()
                    .zip(scopes)
                    .map(|(place, scope)| (*place, scope.tokens()))
                    .collect();
                // Demands on other buckets commute, so only the last one on this bucket counts.
                if let (Some(open), [_]) = (self.open[place], places)
                    && let Step::Take {
                        askers,
                        max_wait_us: merged_wait,
                        from: merged,
                    } = &mut self.steps[open]
                    && *merged == from
                    && *merged_wait == max_wait_us
                {
                    askers.push(asker);
                    return;
                }
                for place in places {
                    self.open[*place] = (places.len() == 1).then_some(self.steps.len());
                }
                self.takes += 1;
                self.steps.push(Step::Take {
                    askers: vec![asker],
                    max_wait_us,
                    from,
                });
                return;
            }
            Command::GiveBack(scope, tokens) => {
                self.steps.push(Step::GiveBack(place, scope, tokens));
            }
            Command::Charge(scope, tokens) => self.steps.push(Step::Charge(place, scope, tokens)),
            Command::Reset(_, reply) => self.steps.push(Step::Reset(place, reply)),
            Command::Look(_, reply) => self.steps.push(Step::Look(place, reply)),
        }
        self.open[place] = None;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn argument(&self) -> Vec<u8> {
        let mut argument = Argument::default();
        for terms in &self.terms {
            argument.key(terms.slower(self.part));
        }
        for step in &self.steps {
            match step {
                Step::Take {
                    askers,
                    max_wait_us,
                    from,
                } => argument.take(
                    // At most `MOST_COMMANDS`.
                    askers.len() as u32,
                    *max_wait_us,
                    from.iter().map(|(place, cost)| (place + 1, *cost)),
                ),
                Step::GiveBack(place, _, tokens) => argument.give_back(place + 1, *tokens),
                Step::Charge(place, _, tokens) => argument.charge(place + 1, *tokens),
                Step::Reset(place, _) => argument.reset(place + 1),
                Step::Look(place, _) => argument.look(place + 1),
            }
        }
        argument.into_bytes()
    }

    /// Sends, and answers all askers. The failure, where there was one.
    pub(super) async fn send<W: Wire>(self, shared: Arc<Shared<A, W>>) -> Option<Failure> {
        let keys = self
            .ids
            .iter()
            .map(|id| id.redis_key(&shared.prefix))
            .collect();
        let sent = Instant::now();
        let result = shared.wire.call(keys, self.argument()).await;
        let reply = result.as_ref().map_err(Clone::clone).and_then(|bytes| {
            Reply::new(bytes, self.takes, self.ids.len()).ok_or_else(|| {
                Failure::new(
                    FailureKind::Misconfigured,
                    "the script's reply is of another length",
                )
            })
        });
        match reply {
            Ok(reply) => {
                self.answer(&reply, &shared.known, sent);
                None
            }
            Err(failure) => {
                self.fail(&failure, &*shared.books);
                Some(failure)
            }
        }
    }

    fn answer(self, reply: &Reply<'_>, known: &Known, sent: Instant) {
        // First, so that whoever is answered finds what is known.
        let mut refusing = vec![false; self.ids.len()];
        let takes = self.steps.iter().filter_map(|step| match step {
            Step::Take { askers, from, .. } => Some((askers.len(), from)),
            _ => None,
        });
        for (take, (askers, from)) in takes.enumerate() {
            let answer = reply.answer(take);
            let (place, _) = from[answer.which.min(from.len() - 1)];
            refusing[place] |= answer.taken.granted < askers as f64;
        }
        for (place, (id, terms)) in self.ids.iter().zip(&self.terms).enumerate() {
            known.learn(
                id.as_bytes(),
                *terms,
                reply.level(place),
                sent,
                refusing[place],
            );
        }
        let mut take = 0;
        for step in self.steps {
            match step {
                Step::Take { askers, from, .. } => {
                    let answer = reply.answer(take);
                    take += 1;
                    let (place, cost) = from[answer.which.min(from.len() - 1)];
                    let terms = self.terms[place].slower(self.part);
                    let (tightest, level) = tightest(&from, &self.terms, reply);
                    for (k, asker) in askers.into_iter().enumerate() {
                        let k = k as u32;
                        asker.answer(Ok(if f64::from(k) < answer.taken.now {
                            Decision::Now { tightest, level }
                        } else if f64::from(k) < answer.taken.granted {
                            Decision::Wait {
                                which: answer.which,
                                wait: from_us(answer.taken.wait(k, cost, terms)),
                            }
                        } else {
                            Decision::Refused {
                                which: answer.which,
                                retry_after: from_us(answer.taken.retry_after),
                            }
                        }));
                    }
                }
                Step::Look(place, answer) | Step::Reset(place, answer) => {
                    let _ = answer.send(Ok(reply.level(place).0));
                }
                Step::GiveBack(..) | Step::Charge(..) => {}
            }
        }
    }

    fn fail(self, failure: &Failure, books: &dyn Books) {
        for step in self.steps {
            match step {
                Step::Take { askers, .. } => {
                    for asker in askers {
                        asker.answer(Err(failure.clone()));
                    }
                }
                Step::Reset(_, answer) | Step::Look(_, answer) => {
                    let _ = answer.send(Err(failure.clone()));
                }
                // Perhaps it was executed: rather charged twice, and not given back twice.
                Step::Charge(_, scope, tokens) => books.correct(&scope, tokens),
                Step::GiveBack(_, scope, tokens) if !failure.sent => {
                    books.correct(&scope, -tokens);
                }
                Step::GiveBack(..) => {}
            }
        }
    }
}

pub(super) fn terms_of(scope: &Scope) -> Terms {
    Terms::new(scope.quota().capacity(), scope.quota().rate())
}

/// The bucket that has the smallest part of its capacity left.
fn tightest(from: &[(usize, f64)], terms: &[Terms], reply: &Reply<'_>) -> (usize, f64) {
    let mut tightest = (0, f64::INFINITY, 0.0);
    for (which, (place, _)) in from.iter().enumerate() {
        let (level, _) = reply.level(*place);
        let part = level / terms[*place].cap;
        if part < tightest.1 {
            tightest = (which, part, level);
        }
    }
    (tightest.0, tightest.2)
}

/// Finds a bucket's place in a batch.
#[derive(Default)]
struct Index {
    table: HashTable<usize>,
    hasher: DefaultHashBuilder,
    last: usize,
}

impl Index {
    fn find_or_insert(&mut self, ids: &mut Vec<BucketId>, id: &BucketId) -> usize {
        // On a hot scope it is the same again.
        if ids
            .get(self.last)
            .is_some_and(|last| last.as_bytes() == id.as_bytes())
        {
            return self.last;
        }
        let hash = self.hasher.hash_one(id.as_bytes());
        let found = self
            .table
            .find(hash, |place| ids[*place].as_bytes() == id.as_bytes());
        self.last = match found {
            Some(place) => *place,
            None => {
                ids.push(*id);
                let hasher = &self.hasher;
                self.table.insert_unique(hash, ids.len() - 1, |place| {
                    hasher.hash_one(ids[*place].as_bytes())
                });
                ids.len() - 1
            }
        };
        self.last
    }
}

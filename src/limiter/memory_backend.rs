//! Decisions in memory: by the full quota without Redis, by the local share in degraded mode.

use super::core::Core;
use crate::{
    bucket::{Bucket, Reservation, TakenAll},
    clock::{from_us, to_us},
    decision::{DecidedBy, Decision},
    fallback::Fallback,
    memory::{Request, ShareBounds},
    scope::{BucketId, Scope},
};

impl Core {
    /// Takes from all of these buckets in memory, or from none. The scopes have different buckets.
    pub(crate) fn take_from_memory(
        &self,
        scopes: &[Scope],
        max_wait_us: f64,
        decided_by: DecidedBy,
    ) -> Decision {
        match scopes {
            [scope] => {
                let params = self.params(scope, decided_by);
                let cost = scope.tokens();
                let id = scope.id(&self.salt);
                let take = |bucket: &mut Bucket| {
                    let taken = bucket.take(cost, 1, max_wait_us, params);
                    (taken, bucket.free(), bucket.at)
                };
                let (taken, level, at) = match self.share_bounds(scope, &id, decided_by) {
                    None => self.memory.with(&id.lookup(), params, take),
                    Some(bounds) => {
                        let incurs_debt = bounds.incurs_debt;
                        self.memory.with_share(&id, params, bounds, |bucket, debt| {
                            let took = take(bucket);
                            if incurs_debt && took.0.granted > 0.0 {
                                *debt += cost;
                            }
                            took
                        })
                    }
                };
                if taken.now > 0.0 {
                    Decision::Now { tightest: 0, level }
                } else if taken.granted > 0.0 {
                    Decision::Wait {
                        which: 0,
                        wait: from_us(taken.last),
                        reservation: Some(Reservation::due(at + taken.last, cost, params)),
                    }
                } else {
                    Decision::Rejected {
                        which: 0,
                        retry_after: from_us(taken.retry_after),
                    }
                }
            }
            scopes => {
                let requests: Vec<_> = scopes
                    .iter()
                    .map(|scope| {
                        let id = scope.id(&self.salt);
                        Request {
                            id,
                            cost: scope.tokens(),
                            params: self.params(scope, decided_by),
                            share: self.share_bounds(scope, &id, decided_by),
                        }
                    })
                    .collect();
                match self.memory.take_all(&requests, max_wait_us) {
                    TakenAll::All => {
                        let (tightest, level) = self.tightest_in_memory(scopes, decided_by);
                        Decision::Now { tightest, level }
                    }
                    TakenAll::Slowest {
                        which,
                        wait,
                        reservation,
                    } => Decision::Wait {
                        which,
                        wait: from_us(wait),
                        reservation: Some(reservation),
                    },
                    TakenAll::Rejected { which, retry_after } => Decision::Rejected {
                        which,
                        retry_after: from_us(retry_after),
                    },
                }
            }
        }
    }

    fn tightest_in_memory(&self, scopes: &[Scope], decided_by: DecidedBy) -> (usize, f64) {
        let mut tightest = (0, f64::INFINITY, 0.0);
        for (which, scope) in scopes.iter().enumerate() {
            let level = self.level_in_memory(scope, decided_by);
            let part = level / scope.quota().capacity();
            if part < tightest.1 {
                tightest = (which, part, level);
            }
        }
        (tightest.0, tightest.2)
    }

    pub(super) fn level_in_memory(&self, scope: &Scope, decided_by: DecidedBy) -> f64 {
        self.bucket_in_memory(scope, decided_by).free()
    }

    pub(super) fn bucket_in_memory(&self, scope: &Scope, decided_by: DecidedBy) -> Bucket {
        let (id, params) = (scope.id(&self.salt), self.params(scope, decided_by));
        match self.share_bounds(scope, &id, decided_by) {
            None => self
                .memory
                .with(&id.lookup(), params, |bucket| bucket.clone()),
            Some(bounds) => {
                let read = |bucket: &mut Bucket, _: &mut f64| bucket.clone();
                self.memory.with_share(&id, params, bounds, read)
            }
        }
    }

    /// The bounds of the local share of this scope; none if the bucket is not a local share.
    fn share_bounds(
        &self,
        scope: &Scope,
        id: &BucketId,
        decided_by: DecidedBy,
    ) -> Option<ShareBounds> {
        let incurs_debt = match decided_by {
            DecidedBy::LocalShare => true,
            DecidedBy::DualAdmission => false,
            _ => return None,
        };
        let mut bounds = ShareBounds::unbounded(scope.params(), incurs_debt);
        if let Some(redis) = &self.redis {
            let (began, recovered) = redis.last_outage();
            // In dual admission the share does not follow levels that were reported after the outage:
            // Redis decides by them as well.
            let counts = |at| incurs_debt || recovered.is_none_or(|recovered| at < recovered);
            if let Some((level, at)) = redis.last_level(id)
                && counts(at)
            {
                // Callers of this process with a reservation ask the share when it is due: what they
                // have reserved must not count twice.
                let reserved = self.queues.reserved(id, DecidedBy::Redis);
                let level = (level + reserved).min(scope.quota().capacity());
                bounds.max_own_level = level / self.shares.divisor(scope);
            }
            if let Fallback::StrictShare(_) = self.shares.policy(scope) {
                let since = match incurs_debt {
                    true => redis.unavailable_since(),
                    false => began,
                };
                // If Redis is available and only this call was too slow, nothing is granted.
                let filled_us = since.map_or(0.0, |since| to_us(since.elapsed()));
                bounds.max_level = filled_us * self.shares.params(scope).per_us;
            }
        }
        Some(bounds)
    }
}

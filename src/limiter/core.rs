//! What all clones of a limiter share, and how a store is chosen.

use std::sync::Arc;

use super::{builder::Fallback, remote::Remote, turns::Turns};
use crate::{
    bucket::{Bucket, TakenAll, Terms},
    clock::from_us,
    decision::{Decision, Origin},
    memory::{Demand, MemoryStore},
    observe::{Health, Observer},
    scope::Scope,
};

pub(crate) struct Core {
    pub(crate) memory: MemoryStore,
    pub(crate) remote: Option<Remote>,
    pub(crate) turns: Turns,
    pub(crate) observer: Arc<Observer>,
    pub(crate) salt: [u8; 32],
    pub(crate) fallback: Fallback,
    /// Among how many a limit is shared while Redis is away.
    share: f64,
}

impl Core {
    pub(crate) fn new(salt: [u8; 32], max_scopes: usize, fallback: Fallback, share: f64) -> Self {
        Self {
            memory: MemoryStore::new(max_scopes),
            remote: None,
            turns: Turns::default(),
            observer: Arc::default(),
            salt,
            fallback,
            share,
        }
    }

    /// By which numbers a store holds this scope.
    pub(crate) fn terms(&self, scope: &Scope, origin: Origin) -> Terms {
        let quota = scope.quota();
        let terms = Terms::new(quota.capacity(), quota.rate());
        match origin {
            Origin::Share => terms.share(self.share),
            _ => terms,
        }
    }

    /// Takes from all of these different buckets in memory, or from none.
    pub(crate) fn take_from_memory(
        &self,
        scopes: &[Scope],
        max_wait_us: f64,
        origin: Origin,
    ) -> Decision {
        match scopes {
            [scope] => {
                let terms = self.terms(scope, origin);
                let cost = scope.tokens();
                let (taken, level) = self.memory.with(&scope.id(&self.salt), terms, |bucket| {
                    (bucket.take(cost, 1, max_wait_us, terms), bucket.level)
                });
                if taken.now > 0.0 {
                    Decision::Now { tightest: 0, level }
                } else if taken.granted > 0.0 {
                    Decision::Wait {
                        which: 0,
                        wait: from_us(taken.last),
                    }
                } else {
                    Decision::Refused {
                        which: 0,
                        retry_after: from_us(taken.retry_after),
                    }
                }
            }
            scopes => {
                let demands: Vec<_> = scopes
                    .iter()
                    .map(|scope| Demand {
                        id: scope.id(&self.salt),
                        cost: scope.tokens(),
                        terms: self.terms(scope, origin),
                    })
                    .collect();
                match self.memory.take_all(&demands, max_wait_us) {
                    TakenAll::All => {
                        let (tightest, level) = self.tightest_in_memory(scopes, origin);
                        Decision::Now { tightest, level }
                    }
                    TakenAll::Slowest { which, wait } => Decision::Wait {
                        which,
                        wait: from_us(wait),
                    },
                    TakenAll::Refused { which, retry_after } => Decision::Refused {
                        which,
                        retry_after: from_us(retry_after),
                    },
                }
            }
        }
    }

    fn tightest_in_memory(&self, scopes: &[Scope], origin: Origin) -> (usize, f64) {
        let mut tightest = (0, f64::INFINITY, 0.0);
        for (which, scope) in scopes.iter().enumerate() {
            let level = self.level_in_memory(scope, origin);
            let part = level / scope.quota().capacity();
            if part < tightest.1 {
                tightest = (which, part, level);
            }
        }
        (tightest.0, tightest.2)
    }

    fn level_in_memory(&self, scope: &Scope, origin: Origin) -> f64 {
        let terms = self.terms(scope, origin);
        self.memory
            .with(&scope.id(&self.salt), terms, |bucket| bucket.level)
    }

    /// Gives back what `origin` granted and nobody used.
    pub(crate) fn give_back(&self, scope: &Scope, tokens: f64, origin: Origin) {
        if tokens > 0.0 {
            self.correct(
                scope,
                origin,
                |bucket, terms| bucket.give_back(tokens, terms),
                |remote| remote.give_back(scope, tokens),
            );
        }
    }

    /// Charges what was used beyond what `origin` granted.
    pub(crate) fn charge(&self, scope: &Scope, tokens: f64, origin: Origin) {
        if tokens > 0.0 {
            self.correct(
                scope,
                origin,
                |bucket, terms| bucket.charge(tokens, terms),
                |remote| remote.charge(scope, tokens),
            );
        }
    }

    /// Corrects a bucket where it is.
    fn correct(
        &self,
        scope: &Scope,
        origin: Origin,
        in_memory: impl FnOnce(&mut Bucket, Terms),
        in_redis: impl FnOnce(&Remote),
    ) {
        match (origin, &self.remote) {
            (Origin::Memory | Origin::Share, _) => {
                let terms = self.terms(scope, origin);
                self.memory.with(&scope.id(&self.salt), terms, |bucket| {
                    in_memory(bucket, terms);
                });
            }
            (Origin::Redis, Some(remote)) => in_redis(remote),
            (Origin::Redis, None) | (Origin::Nowhere, _) => {}
        }
    }

    /// The store that holds the buckets while all is well.
    pub(crate) fn home(&self) -> Origin {
        match self.remote {
            Some(_) => Origin::Redis,
            None => Origin::Memory,
        }
    }

    pub(crate) async fn peek(&self, scope: &Scope) -> (f64, bool) {
        match &self.remote {
            None => (self.level_in_memory(scope, Origin::Memory), false),
            Some(remote) => match remote.look(scope).await {
                Ok(level) => (level, false),
                Err(_) => (self.level_in_memory(scope, Origin::Share), true),
            },
        }
    }

    pub(crate) async fn reset(&self, scope: &Scope) {
        self.memory.reset(&scope.id(&self.salt));
        if let Some(remote) = &self.remote {
            // Without Redis there is nothing to tell; the memory was reset.
            let _ = remote.reset(scope).await;
        }
    }

    pub(crate) fn health(&self) -> Health {
        match (&self.remote, self.observer.degraded()) {
            (None, _) => Health::InMemory,
            (Some(_), None) => Health::Redis,
            (Some(_), Some((since, reason))) => Health::Degraded { since, reason },
        }
    }

    /// Whether somebody here waits for one of these scopes, or Redis is known to refuse it.
    pub(crate) fn is_scarce(&self, scopes: &[Scope], max_wait_us: f64) -> bool {
        let home = self.home();
        scopes.iter().any(|scope| {
            self.turns.has_sleepers(self, scope, home)
                || self
                    .remote
                    .as_ref()
                    .is_some_and(|remote| remote.refuses(scope, max_wait_us).is_some())
        })
    }
}

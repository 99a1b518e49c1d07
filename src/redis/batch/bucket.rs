//! A bucket of one call, and how a call finds it.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use super::{merged_take::MergedTake, request::Requester};
use crate::{
    bucket::BucketParams,
    packed_map::Hashing,
    scope::{BucketId, Scope},
};

/// Buckets in one call. Redis runs one script at a time: a longer one would delay its other users.
pub(super) const MOST_BUCKETS: usize = 128;

pub(super) struct CallBucket<R: Requester> {
    /// One of the scopes that name the bucket. A hot scope is found by comparing it with this.
    pub(super) scope: Scope,
    pub(super) id: BucketId,
    /// The full quota.
    pub(super) params: BucketParams,
    /// The first request, if no operation comes before it. It is encoded with the bucket.
    pub(super) first: Option<MergedTake<R>>,
    /// What came last.
    pub(super) last: Last,
    /// The last step that is an operation. Only requests may have followed.
    pub(super) last_op: Option<usize>,
    /// An operation by another quota was left for the next call, and nothing on this bucket may
    /// overtake it.
    pub(super) is_closed: bool,
}

/// What came last on a bucket, and may be joined by an equal request or operation. Everything about
/// other buckets commutes with it.
#[derive(Clone, Copy)]
pub(super) enum Last {
    /// Nothing yet.
    Nothing,
    /// The first request.
    First,
    /// This step.
    Step(usize),
    /// A request for several buckets, which nothing joins.
    Several,
}

/// Why a command is not part of a call.
pub(super) enum Unfit {
    /// The call would have too many buckets or steps: this command and all behind it are left for
    /// the next one.
    Full,
    /// The call has the bucket by another quota: this command is left for the next call, and those
    /// behind it may still join this one.
    OtherQuota,
    /// The request names one bucket by two quotas. No caller intends that. If it were left for
    /// another call, it would block all requests behind it.
    Contradictory,
}

/// Finds a bucket in a call.
#[derive(Default)]
pub(super) struct BucketIndex {
    table: HashTable<usize>,
    hasher: Hashing,
    last: usize,
}

impl BucketIndex {
    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.last = 0;
    }

    /// The bucket that was found last, even if it was unfit.
    pub(super) fn last(&self) -> usize {
        self.last
    }

    /// Returns where the bucket of a scope is among `buckets`, and adds it if it is new.
    pub(super) fn find_or_add<R: Requester>(
        &mut self,
        buckets: &mut Vec<CallBucket<R>>,
        scope: &Scope,
        secret: &[u8; 32],
    ) -> Result<usize, Unfit> {
        let params = scope.params();
        // On a hot scope it is the same again.
        let last = buckets.get(self.last);
        if !last.is_some_and(|last| last.scope.same_bucket(scope)) {
            let id = scope.id(secret);
            let hash = self.hasher.hash_one(id.as_bytes());
            let is_it = |index: &usize| buckets[*index].id.as_bytes() == id.as_bytes();
            if let Some(index) = self.table.find(hash, is_it) {
                self.last = *index;
            } else if buckets.len() < MOST_BUCKETS {
                self.last = buckets.len();
                buckets.push(CallBucket {
                    scope: scope.clone(),
                    id,
                    params,
                    first: None,
                    last: Last::Nothing,
                    last_op: None,
                    is_closed: false,
                });
                let hasher = &self.hasher;
                self.table.insert_unique(hash, self.last, |index| {
                    hasher.hash_one(buckets[*index].id.as_bytes())
                });
            } else {
                return Err(Unfit::Full);
            }
        }
        let bucket = &buckets[self.last];
        if bucket.params == params && !bucket.is_closed {
            Ok(self.last)
        } else {
            Err(Unfit::OtherQuota)
        }
    }

    /// Removes all buckets but the first `length`.
    pub(super) fn truncate<R: Requester>(
        &mut self,
        buckets: &mut Vec<CallBucket<R>>,
        length: usize,
    ) {
        buckets.truncate(length);
        self.table.retain(|index| *index < length);
        self.last = 0;
    }
}

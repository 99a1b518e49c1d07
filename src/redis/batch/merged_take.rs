//! Requests that the script decides as one: which are merged, and what each of them gets.

use tokio::time::Instant;

use super::request::{PendingRequest, Requester};
use crate::{
    bucket::{BucketParams, Reservation, Taken},
    clock::from_us,
    decision::{Decision, Failure},
    peers::RatePart,
    redis::{
        bucket_state::BucketState,
        script::{Answer, Arguments, First},
    },
};

/// Equal requests are merged if their waits differ by at most this part of the longest. The
/// shortest is used for all of them, so that no caller waits for longer than requested.
const SIMILAR_WAIT: f64 = 1.0 / 64.0;

/// How many requests are answered by one reading of the clock.
const ANSWERED_AT_ONCE: usize = 256;

/// From which buckets of the call a request takes, and how many tokens.
enum Costs {
    One([(usize, f64); 1]),
    Several(Vec<(usize, f64)>),
}

/// Requests for the same bucket, of equal costs and similar waits, in their order; or one request
/// for several buckets.
pub(super) struct MergedTake<R: Requester> {
    costs: Costs,
    /// The shortest wait, which counts for all.
    max_wait_us: f64,
    /// The longest wait.
    longest_us: f64,
    first: PendingRequest<R>,
    more: Vec<PendingRequest<R>>,
}

/// The reply of a call, as requests read it.
pub(super) struct Results<'a> {
    /// When it was received.
    pub(super) received: Instant,
    /// By which part of their rates buckets refilled when the call was sent.
    pub(super) part: RatePart,
    /// The server's time, from which waits count, if it is known.
    pub(super) time: Option<f64>,
    /// The full quotas of the buckets.
    pub(super) params: &'a [BucketParams],
    pub(super) states: &'a [BucketState],
}

impl<R: Requester> MergedTake<R> {
    pub(super) fn one(bucket: usize, request: PendingRequest<R>, max_wait_us: f64) -> Self {
        let cost = request.scopes()[0].tokens();
        Self::new(Costs::One([(bucket, cost)]), request, max_wait_us)
    }

    /// `costs` are buckets and costs, at least one.
    pub(super) fn several(
        costs: Vec<(usize, f64)>,
        request: PendingRequest<R>,
        max_wait_us: f64,
    ) -> Self {
        Self::new(Costs::Several(costs), request, max_wait_us)
    }

    fn new(costs: Costs, request: PendingRequest<R>, max_wait_us: f64) -> Self {
        Self {
            costs,
            max_wait_us,
            longest_us: max_wait_us,
            first: request,
            more: Vec::new(),
        }
    }

    /// Whether a request for the same bucket may be merged with these.
    ///
    /// The order is kept: if some are rejected by the shortest wait, those before them were granted
    /// as they would be alone.
    pub(super) fn admits(&self, cost: f64, max_wait_us: f64) -> bool {
        let longest = self.longest_us.max(max_wait_us);
        let shortest = self.max_wait_us.min(max_wait_us);
        self.costs()[0].1 == cost && longest - shortest <= longest * SIMILAR_WAIT
    }

    pub(super) fn push(&mut self, request: PendingRequest<R>, max_wait_us: f64) {
        self.max_wait_us = self.max_wait_us.min(max_wait_us);
        self.longest_us = self.longest_us.max(max_wait_us);
        self.more.push(request);
    }

    /// Buckets and costs.
    pub(super) fn costs(&self) -> &[(usize, f64)] {
        match &self.costs {
            Costs::One(one) => one,
            Costs::Several(several) => several,
        }
    }

    pub(super) fn len(&self) -> usize {
        1 + self.more.len()
    }

    fn into_requests(self) -> impl Iterator<Item = PendingRequest<R>> {
        std::iter::once(self.first).chain(self.more)
    }

    /// Encoded with its bucket, as the first request for it.
    pub(super) fn to_first(&self, part: RatePart) -> First {
        First {
            cost: self.costs()[0].1,
            n: self.len() as u32,
            max_wait_us: part.lengthen(self.max_wait_us),
        }
    }

    pub(super) fn encode(&self, arguments: &mut Arguments, part: RatePart) {
        let max_wait_us = part.lengthen(self.max_wait_us);
        arguments.take(self.len() as u32, max_wait_us, self.costs());
    }

    /// Which bucket decided, as an index into `costs`.
    fn deciding(&self, answer: Answer) -> usize {
        answer.which.min(self.costs().len() - 1)
    }

    /// The bucket that rejected some of these requests, if one did.
    pub(super) fn rejected_by(&self, answer: Answer) -> Option<usize> {
        let n = self.len() as f64;
        let (bucket, _) = self.costs()[self.deciding(answer)];
        (granted(answer.taken, n) < n).then_some(bucket)
    }

    /// Answers all of these requests.
    ///
    /// The script counts all waits by the part of the rate that the call was sent with. Here they
    /// become those of the rate that buckets have after that.
    pub(super) fn answer(self, answer: Answer, results: &Results<'_>) {
        let which = self.deciding(answer);
        let (bucket, cost) = self.costs()[which];
        let part = results.part.with_pause(results.states[bucket].pause_us);
        let (n, sent_wait_us) = (self.len() as f64, self.max_wait_us);
        let taken = bounded(answer.taken, n, sent_wait_us, (results.part, part));
        let (tightest, level) = self.tightest(results);
        // The queue in Redis is that of the lower rate.
        let params = results.params[bucket].slower(part.of_rate);
        let mut decided_at = results.received;
        for (k, request) in self.into_requests().enumerate() {
            // Callers must use their tokens soon, and to answer thousands of them takes a while.
            if k % ANSWERED_AT_ONCE == ANSWERED_AT_ONCE - 1 {
                decided_at = Instant::now();
            }
            let k = k as u32;
            let decision = if f64::from(k) < taken.now {
                Decision::Now { tightest, level }
            } else if f64::from(k) < taken.granted {
                let wait = taken.wait(k, cost, params);
                let due = |time| Reservation::due(time + wait, cost, params);
                Decision::Wait {
                    which,
                    wait: from_us(part.shorten(wait).min(sent_wait_us)),
                    reservation: results.time.map(due),
                }
            } else {
                // Redis counts from the wait that was sent, the caller from the one requested.
                let longer = request.max_wait_us() - sent_wait_us;
                Decision::Rejected {
                    which,
                    retry_after: from_us((taken.retry_after - longer).max(1.0)),
                }
            };
            request.answer(decision, decided_at);
        }
    }

    /// Which bucket has the smallest part of its capacity left, as an index into `costs`, and its
    /// level.
    fn tightest(&self, results: &Results<'_>) -> (usize, f64) {
        let mut tightest = (0, f64::INFINITY, 0.0);
        for (which, (bucket, _)) in self.costs().iter().enumerate() {
            let level = results.states[*bucket].level;
            let part = level / results.params[*bucket].capacity;
            if which == 0 || part < tightest.1 {
                tightest = (which, part, level);
            }
        }
        (tightest.0, tightest.2)
    }

    /// Not delivered: because of `failure`, or because the worker ended.
    pub(super) fn undelivered(self, failure: Option<&Failure>) {
        self.into_requests()
            .for_each(|request| request.undelivered(failure));
    }
}

/// How many of `n` requests were granted. Here and below, `max` replaces what is not a number.
fn granted(taken: Taken, n: f64) -> f64 {
    taken.granted.max(0.0).min(n).floor()
}

/// At most what was requested: `n` grants, none of which waits for longer than `max_wait_us`. A
/// healthy Redis replies no more than that.
///
/// `retry_after` is counted by the rate that a bucket has after the call: `sent` is the part of the
/// rate that waits were sent by, and `part` the same for this bucket, which may be paused.
fn bounded(taken: Taken, n: f64, max_wait_us: f64, (sent, part): (RatePart, RatePart)) -> Taken {
    let granted = granted(taken, n);
    Taken {
        now: taken.now.max(0.0).min(granted).floor(),
        granted,
        last: taken.last.max(0.0).min(sent.lengthen(max_wait_us)),
        retry_after: part.retry_after(taken.retry_after.max(1.0), max_wait_us),
    }
}

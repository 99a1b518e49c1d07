//! A batcher over a scripted Redis, in paused time.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

use crate::{
    bucket::{Debt, Reservation},
    decision::{Decision, Failure, FailureKind},
    peers::RatePart,
    quota::Quota,
    redis::{
        batch::{
            batcher::Batcher,
            connection::{Connection, Deadline},
            request::Requester,
        },
        lease::{AHEAD, Leases},
        ledger::Ledger,
        level_cache::LevelCache,
        op::Op,
        script::{Arguments, TAKE},
    },
    scope::{Keyspace, Scope},
    verification::{bucket_model::Rng, reference_model::Call},
};

/// How long a call may take.
pub(super) const TIMEOUT: Duration = Duration::from_millis(100);

pub(super) const QUOTA: Quota = Quota::per_second(10.0).burst(1_000.0);

/// What was sent as one call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SentCall {
    pub(super) keys: Vec<String>,
    /// Of the first request for each key: how many, their wait, their cost.
    pub(super) firsts: Vec<[f64; 3]>,
    /// The numbers of all steps.
    pub(super) steps: Vec<f64>,
}

/// The numbers of each step, apart.
pub(super) fn split_steps(mut rest: &[f64]) -> Vec<&[f64]> {
    let mut steps = Vec::new();
    while let Some(code) = rest.first() {
        let mut length = 1;
        if *code == TAKE {
            length = 4 + 2 * rest[3] as usize;
        } else {
            Op::decode(*code, || {
                length += 1;
                rest[length - 1]
            });
        }
        let (step, others) = rest.split_at(length);
        steps.push(step);
        rest = others;
    }
    steps
}

/// Grants everything at once, as far as it is allowed to answer.
#[derive(Clone)]
pub(super) struct ScriptedRedis {
    pub(super) sent: Arc<Mutex<Vec<SentCall>>>,
    /// How many calls it may answer.
    pub(super) answers: Arc<Semaphore>,
    pub(super) fails: bool,
    /// Replies are one number short.
    pub(super) cuts: Arc<AtomicBool>,
    /// Nothing is sent.
    pub(super) is_unavailable: Arc<AtomicBool>,
    /// Nothing can be taken ahead.
    pub(super) is_scarce: Arc<AtomicBool>,
    pub(super) is_abandoned: Arc<AtomicBool>,
    /// How long a call takes, one after the other.
    pub(super) takes: Duration,
    /// When the calls that were sent are done.
    pub(super) busy_until: Arc<Mutex<Option<Instant>>>,
    /// Replaces some numbers of replies by others.
    pub(super) garbles: Arc<Mutex<Option<Rng>>>,
    /// The level of this bucket is not a number.
    pub(super) nan_for: Arc<Mutex<Option<String>>>,
}

/// A number that a healthy Redis neither replies nor stores.
pub(crate) fn hostile(rng: &mut Rng) -> f64 {
    let bits = f64::from_bits(rng.next());
    let some = [
        bits,
        bits,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
        1e300,
        -1e300,
        // Years, in microseconds.
        31.0 * 365.0 * 86_400e6,
        4_294_967_295.0,
        1e9,
        -1e9,
        2.5,
        1.0,
        0.0,
        -1.0,
    ];
    rng.pick(&some)
}

impl ScriptedRedis {
    pub(super) fn new(answers: usize) -> Self {
        Self {
            sent: Arc::default(),
            answers: Arc::new(Semaphore::new(answers)),
            fails: false,
            cuts: Arc::default(),
            is_unavailable: Arc::default(),
            is_scarce: Arc::default(),
            is_abandoned: Arc::default(),
            takes: Duration::ZERO,
            busy_until: Arc::default(),
            garbles: Arc::default(),
            nan_for: Arc::default(),
        }
    }

    pub(super) fn calls(&self) -> Vec<SentCall> {
        self.sent.lock().expect("no panic").clone()
    }

    fn reply(&self, call: &SentCall) -> Vec<f64> {
        let mut garbles = self.garbles.lock().expect("no panic");
        let mut details = Vec::new();
        let mut reply = vec![0.0];
        for [n, ..] in &call.firsts {
            if garbles.as_mut().is_some_and(|rng| rng.percent(50)) {
                reply.push(f64::INFINITY);
                details.extend([*n, *n, 0.0, 0.0, 500.0, 0.0]);
            } else {
                reply.push(500.0);
            }
        }
        reply.extend(details);
        for step in split_steps(&call.steps) {
            if step[0] == TAKE {
                let n = step[1];
                reply.extend([n, n, 0.0, 0.0, 1.0]);
                continue;
            }
            let mut numbers = step[1..].iter().copied();
            let (_, op) = Op::decode(step[0], || numbers.next().expect("a whole step"));
            if let Op::Lease { tokens } = op {
                let ahead = match self.is_scarce.load(Ordering::Relaxed) {
                    true => 0.0,
                    false => tokens,
                };
                reply.extend([ahead, ahead, 0.0, 0.0, 1.0]);
            }
        }
        if let Some(bad) = &*self.nan_for.lock().expect("no panic") {
            for (index, _) in call.keys.iter().enumerate().filter(|(_, key)| *key == bad) {
                reply[1 + index] = f64::NAN;
            }
        }
        if let Some(rng) = &mut *garbles {
            for (index, number) in reply.iter_mut().enumerate().skip(1) {
                if !rng.percent(40) {
                    continue;
                }
                let other = hostile(rng);
                // The infinite levels of buckets determine the length of a reply.
                let is_level = index <= call.firsts.len();
                if !is_level || (number.is_finite() && other != f64::INFINITY) {
                    *number = other;
                }
            }
        }
        reply
    }
}

impl Connection for ScriptedRedis {
    fn call_timeout(&self) -> Duration {
        TIMEOUT
    }

    fn part(&self) -> RatePart {
        RatePart::FULL
    }

    fn is_steady(&self) -> bool {
        !self.is_unavailable.load(Ordering::Relaxed)
    }

    fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
    }

    fn close(&self) {}

    fn call(
        &self,
        arguments: Arguments,
        _: &mut Deadline,
    ) -> impl Future<Output = Result<Vec<u8>, Failure>> + Send {
        let fields: Vec<_> = arguments.fields().collect();
        let read = Call::read(arguments.numbers(), &fields, 1.0);
        let firsts = read.firsts.iter();
        let steps = arguments.steps().chunks(8);
        let call = SentCall {
            keys: read.keys.into_iter().map(|(key, _)| key).collect(),
            firsts: firsts
                .map(|first| [f64::from(first.n), first.max_wait_us, first.cost])
                .collect(),
            steps: steps
                .map(|number| f64::from_le_bytes(number.try_into().expect("eight bytes")))
                .collect(),
        };
        let mut reply = self.reply(&call);
        self.sent.lock().expect("no panic").push(call);
        let redis = self.clone();
        async move {
            if !redis.takes.is_zero() {
                let done = {
                    let mut busy_until = redis.busy_until.lock().expect("no panic");
                    let starts = (*busy_until).max(Some(Instant::now()));
                    *busy_until = starts.map(|starts| starts + redis.takes);
                    *busy_until
                };
                tokio::time::sleep_until(done.expect("it is busy")).await;
            }
            if redis.is_unavailable.load(Ordering::Relaxed) {
                return Err(Failure::new(FailureKind::Timeout, "scripted").unsent());
            }
            redis.answers.acquire().await.expect("open").forget();
            if redis.fails {
                return Err(Failure::new(FailureKind::Timeout, "scripted"));
            }
            if redis.cuts.load(Ordering::Relaxed) {
                reply.pop();
            }
            Ok(reply.into_iter().flat_map(f64::to_le_bytes).collect())
        }
    }
}

/// What was not delivered.
#[derive(Default)]
pub(super) struct RecordedLedger {
    pub(super) corrections: Mutex<Vec<f64>>,
    /// Names of scopes.
    pub(super) pauses: Mutex<Vec<String>>,
}

impl Ledger for RecordedLedger {
    fn correct(&self, _: &Scope, tokens: f64) {
        self.corrections.lock().expect("no panic").push(tokens);
    }

    fn pause(&self, scope: &Scope, _: Instant) {
        let mut pauses = self.pauses.lock().expect("no panic");
        pauses.push(scope.name().to_owned());
    }

    fn pauses(&self) -> Vec<(Scope, Instant)> {
        Vec::new()
    }

    fn confirm_pauses(&self, _: &[(Scope, Instant)]) {}

    fn undo(&self, _: Scope, _: Reservation) {}

    fn cancelled(&self) -> Vec<(Scope, Reservation)> {
        Vec::new()
    }

    fn sweep_step(&self, _: usize) {}

    fn has_debt(&self) -> bool {
        false
    }

    fn drain(&self) -> Vec<Debt> {
        Vec::new()
    }
}

type Answers = Arc<Mutex<Vec<(usize, Result<Decision, FailureKind>)>>>;

pub(super) struct Caller {
    number: usize,
    scopes: Vec<Scope>,
    max_wait_us: f64,
    is_wanted: bool,
    answers: Answers,
    made_again: Arc<Mutex<Vec<usize>>>,
}

impl Requester for Caller {
    fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    fn max_wait_us(&self) -> f64 {
        self.max_wait_us
    }

    fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    fn answer(self, answer: Result<Decision, Failure>, _: Instant) {
        let answer = answer.map_err(|failure| failure.kind);
        self.answers
            .lock()
            .expect("no panic")
            .push((self.number, answer));
    }

    fn retry(self) {
        self.made_again.lock().expect("no panic").push(self.number);
    }
}

pub(super) struct Setup {
    pub(super) batcher: Batcher<Caller, ScriptedRedis>,
    pub(super) levels: Arc<LevelCache>,
    pub(super) redis: ScriptedRedis,
    pub(super) ledger: Arc<RecordedLedger>,
    /// Numbers of requests and their answers.
    pub(super) answers: Answers,
    /// Numbers of requests that are to be made again.
    pub(super) made_again: Arc<Mutex<Vec<usize>>>,
    /// How many requests were made.
    pub(super) asked: usize,
}

impl Setup {
    pub(super) fn new(redis: ScriptedRedis) -> Self {
        let no_leases = Arc::new(Leases::new(0.0, 1_000, AHEAD));
        Self::with_leases(redis, no_leases)
    }

    pub(super) fn with_leases(redis: ScriptedRedis, leases: Arc<Leases>) -> Self {
        let ledger = Arc::new(RecordedLedger::default());
        let levels = Arc::new(LevelCache::new(1_000));
        let batcher = Batcher::new(
            redis.clone(),
            Keyspace::new("", [0; 32]),
            levels.clone(),
            leases,
            ledger.clone(),
        );
        Self {
            batcher,
            levels,
            redis,
            ledger,
            answers: Answers::default(),
            made_again: Arc::default(),
            asked: 0,
        }
    }

    pub(super) fn ask(&mut self, scopes: impl Into<Vec<Scope>>) {
        self.ask_for(scopes, 0.0, true);
    }

    pub(super) fn ask_for(
        &mut self,
        scopes: impl Into<Vec<Scope>>,
        max_wait_us: f64,
        is_wanted: bool,
    ) {
        self.batcher.take(Caller {
            number: self.asked,
            scopes: scopes.into(),
            max_wait_us,
            is_wanted,
            answers: self.answers.clone(),
            made_again: self.made_again.clone(),
        });
        self.asked += 1;
    }

    pub(super) fn give_back(&self, scope: &Scope, tokens: f64) {
        self.batcher.send(scope, Op::GiveBack { tokens });
    }

    pub(super) fn charge(&self, scope: &Scope, tokens: f64) {
        self.batcher.send(scope, Op::Charge { tokens });
    }

    pub(super) fn cap_level(&self, scope: &Scope, tokens: f64) {
        self.batcher.send(scope, Op::CapLevel { tokens });
    }

    /// Paused time advances only when nothing else can run.
    pub(super) async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Numbers of answered requests, in the order of their answers.
    pub(super) fn answered(&self) -> Vec<usize> {
        let answers = self.answers.lock().expect("no panic");
        answers.iter().map(|(number, _)| *number).collect()
    }
}

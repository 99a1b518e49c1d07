//! The batcher over a scripted Redis, in paused time.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

use crate::redis::{
    batch::command::{Connection, Deadline, Debt, Ledger, Requester},
    batch::worker::Batcher,
    lease::{AHEAD, IDLE_CHECK, Leases},
    level_cache::LevelCache,
};
use crate::{
    bucket::{BucketParams, Reservation},
    clock::LONGEST_WAIT,
    decision::{Decision, Failure, FailureKind},
    peers::RatePart,
    quota::Quota,
    scope::{Keyspace, Scope},
    verification::bucket_model::{Rng, seed},
};

const PATIENCE: Duration = Duration::from_millis(100);

const QUOTA: Quota = Quota::per_second(10.0).burst(1_000.0);

/// What a call carried: its keys, the first demand on each (how many, max_wait, cost), and the
/// numbers of the commands.
type Call = (Vec<String>, Vec<[f64; 3]>, Vec<f64>);

/// Grants everything at once, when it is allowed to answer.
#[derive(Clone)]
struct Scripted {
    calls: Arc<Mutex<Vec<Call>>>,
    answers: Arc<Semaphore>,
    fails: bool,
    /// Replies come cut short.
    cuts: Arc<AtomicBool>,
    /// Nothing is sent.
    away: Arc<AtomicBool>,
    /// Nothing can be taken ahead.
    scarce: Arc<AtomicBool>,
    abandoned: Arc<AtomicBool>,
    takes: Duration,
    /// Some numbers of replies are replaced by others.
    garbles: Arc<Mutex<Option<Rng>>>,
    /// The level of this bucket is no number.
    nan_for: Arc<Mutex<Option<String>>>,
}

/// What no healthy Redis replies, or stores.
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

impl Scripted {
    fn new(answers: usize) -> Self {
        Self {
            calls: Arc::default(),
            answers: Arc::new(Semaphore::new(answers)),
            fails: false,
            cuts: Arc::default(),
            away: Arc::default(),
            scarce: Arc::default(),
            abandoned: Arc::default(),
            takes: Duration::ZERO,
            garbles: Arc::default(),
            nan_for: Arc::default(),
        }
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("no panic").clone()
    }
}

impl Connection for Scripted {
    fn call_timeout(&self) -> Duration {
        PATIENCE
    }

    fn part(&self) -> RatePart {
        RatePart::FULL
    }

    fn is_steady(&self) -> bool {
        !self.away.load(Ordering::Relaxed)
    }

    fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    fn close(&self) {}

    fn call(
        &self,
        keys: Vec<Vec<u8>>,
        argument: Vec<u8>,
        _: &mut Deadline,
    ) -> impl Future<Output = Result<Vec<u8>, Failure>> + Send {
        let numbers: Vec<f64> = argument
            .chunks(8)
            .map(|number| f64::from_le_bytes(number.try_into().expect("eight bytes")))
            .collect();
        let (firsts, commands) = numbers.split_at(5 * keys.len());
        let mut reply = vec![0.0];
        let firsts: Vec<_> = firsts.chunks(5).map(|of| [of[3], of[4], of[2]]).collect();
        for [n, ..] in &firsts {
            reply.extend([*n, *n, 0.0, 0.0, 500.0, 0.0]);
        }
        let commands = commands.to_vec();
        let mut at = 0;
        while at < commands.len() {
            if commands[at] == 0.0 {
                let n = commands[at + 1];
                reply.extend([n, n, 0.0, 0.0, 1.0]);
                at += 4 + 2 * commands[at + 3] as usize;
            } else if commands[at] == 8.0 {
                let ahead = match self.scarce.load(Ordering::Relaxed) {
                    true => 0.0,
                    false => commands[at + 2],
                };
                reply.extend([ahead, ahead, 0.0, 0.0, 1.0]);
                at += 3;
            } else {
                // Neither a reset nor a look has a number of its own.
                at += if [3.0, 4.0].contains(&commands[at]) {
                    2
                } else {
                    3
                };
            }
        }
        let names = keys
            .into_iter()
            .map(|key| String::from_utf8(key).expect("ASCII"))
            .collect();
        let names: Vec<String> = names;
        if let Some(bad) = &*self.nan_for.lock().expect("no panic") {
            for at in names.iter().enumerate().filter(|(_, name)| *name == bad) {
                reply[1 + 6 * at.0 + 4] = f64::NAN;
            }
        }
        let call = (names, firsts, commands);
        self.calls.lock().expect("no panic").push(call);
        let (answers, fails) = (self.answers.clone(), self.fails);
        let (cuts, away) = (self.cuts.clone(), self.away.clone());
        if let Some(rng) = &mut *self.garbles.lock().expect("no panic") {
            for number in &mut reply[1..] {
                if rng.percent(40) {
                    *number = hostile(rng);
                }
            }
        }
        let takes = self.takes;
        async move {
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            if away.load(Ordering::Relaxed) {
                return Err(Failure::new(FailureKind::Timeout, "scripted").unsent());
            }
            answers.acquire().await.expect("open").forget();
            if fails {
                return Err(Failure::new(FailureKind::Timeout, "scripted"));
            }
            if cuts.load(Ordering::Relaxed) {
                reply.pop();
            }
            Ok(reply.into_iter().flat_map(f64::to_le_bytes).collect())
        }
    }
}

/// Corrections that Redis was not told of.
#[derive(Default)]
struct RecordedLedger(Mutex<Vec<f64>>, Mutex<Vec<String>>);

impl Ledger for RecordedLedger {
    fn pause(&self, scope: &Scope, _: Instant) {
        let mut holds = self.1.lock().expect("no panic");
        holds.push(scope.name().to_owned());
    }

    fn undo(&self, _: Box<(Scope, Reservation)>) {}

    fn cancelled(&self) -> Vec<(Scope, Reservation)> {
        Vec::new()
    }

    fn sweep_step(&self, _: usize) {}

    fn correct(&self, _: &Scope, tokens: f64) {
        self.0.lock().expect("no panic").push(tokens);
    }

    fn has_debt(&self) -> bool {
        false
    }

    fn drain(&self) -> Vec<Debt> {
        Vec::new()
    }
}

type Answers = Arc<Mutex<Vec<(usize, Result<Decision, FailureKind>)>>>;

struct Caller {
    number: usize,
    scopes: Vec<Scope>,
    max_wait_us: f64,
    wanted: bool,
    answers: Answers,
    asks_again: Arc<Mutex<Vec<usize>>>,
}

impl Requester for Caller {
    fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    fn max_wait_us(&self) -> f64 {
        self.max_wait_us
    }

    fn is_wanted(&self) -> bool {
        self.wanted
    }

    fn answer(self, answer: Result<Decision, Failure>) {
        let answer = answer.map_err(|failure| failure.kind);
        self.answers
            .lock()
            .expect("no panic")
            .push((self.number, answer));
    }

    fn retry(self) {
        self.asks_again.lock().expect("no panic").push(self.number);
    }
}

struct Setup {
    batcher: Batcher<Caller, Scripted>,
    known: Arc<LevelCache>,
    wire: Scripted,
    answers: Answers,
    asks_again: Arc<Mutex<Vec<usize>>>,
    books: Arc<RecordedLedger>,
    asked: usize,
}

impl Setup {
    fn new(wire: Scripted) -> Self {
        let books = Arc::new(RecordedLedger::default());
        let known = Arc::new(LevelCache::new(1_000));
        let leases = Arc::new(Leases::new(0.0, 1_000, AHEAD));
        let batcher = Batcher::new(
            wire.clone(),
            Keyspace::new("", [0; 32]),
            known.clone(),
            leases,
            books.clone(),
        );
        Self {
            batcher,
            known,
            wire,
            books,
            answers: Answers::default(),
            asks_again: Arc::default(),
            asked: 0,
        }
    }

    fn ask(&mut self, scopes: impl Into<Vec<Scope>>) {
        self.ask_for(scopes, 0.0, true);
    }

    fn ask_for(&mut self, scopes: impl Into<Vec<Scope>>, max_wait_us: f64, wanted: bool) {
        self.batcher.take(Caller {
            number: self.asked,
            scopes: scopes.into(),
            max_wait_us,
            wanted,
            answers: self.answers.clone(),
            asks_again: self.asks_again.clone(),
        });
        self.asked += 1;
    }

    /// Paused time moves on only when nothing else can.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    fn answered(&self) -> Vec<usize> {
        let answers = self.answers.lock().expect("no panic");
        answers.iter().map(|(number, _)| *number).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn what_gathers_during_a_call_goes_out_as_one() {
    let mut setup = Setup::new(Scripted::new(0));
    let (a, b) = (QUOTA.scope("a"), QUOTA.scope("b"));
    setup.ask([a.clone()]);
    setup.settle().await;
    for _ in 0..10 {
        setup.ask([a.clone()]);
        setup.ask([b.clone()]);
    }
    setup.settle().await;
    assert_eq!(
        setup.wire.calls().len(),
        1,
        "no timer, and no second call for so few"
    );
    setup.wire.answers.add_permits(2);
    setup.settle().await;
    let calls = setup.wire.calls();
    assert_eq!(calls[0].1, [[1.0, 0.0, 1.0]]);
    assert_eq!(calls[1].0, ["|a", "|b"]);
    // Demands on different buckets commute, so equal ones merge across each other.
    assert_eq!(calls[1].1, [[10.0, 0.0, 1.0]; 2]);
    assert!(calls.iter().all(|(.., commands)| commands.is_empty()));
    assert_eq!(setup.answered().len(), 21);
}

#[tokio::test(start_paused = true)]
async fn demands_on_one_bucket_keep_their_order() {
    let mut setup = Setup::new(Scripted::new(9));
    let (a, b) = (QUOTA.scope("a"), QUOTA.scope("b"));
    setup.ask([a.clone()]);
    setup.ask([a.clone()]);
    setup.ask([a.clone().cost(5.0)]);
    setup.ask([a.clone()]);
    setup.ask_for([a.clone()], 7.0, true);
    setup.ask([a.clone(), b.clone()]);
    setup.ask([b.clone()]);
    setup.batcher.give_back(&b, 2.0);
    setup.ask([b.clone()]);
    setup.settle().await;
    let [call] = &setup.wire.calls()[..] else {
        panic!("one call");
    };
    assert_eq!(call.1, [[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]);
    let expected: [&[f64]; 7] = [
        &[0.0, 1.0, 0.0, 1.0, 1.0, 5.0],
        &[0.0, 1.0, 0.0, 1.0, 1.0, 1.0],
        &[0.0, 1.0, 7.0, 1.0, 1.0, 1.0],
        &[0.0, 1.0, 0.0, 2.0, 1.0, 1.0, 2.0, 1.0],
        &[0.0, 1.0, 0.0, 1.0, 2.0, 1.0],
        &[1.0, 2.0, 2.0],
        &[0.0, 1.0, 0.0, 1.0, 2.0, 1.0],
    ];
    assert_eq!(call.2, expected.concat());
    assert_eq!(setup.answered(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_bounded_and_a_quota_change_splits_it() {
    let mut setup = Setup::new(Scripted::new(99));
    for key in 0..300 {
        setup.ask([QUOTA.scope("s").key(key)]);
    }
    setup.settle().await;
    let sizes: Vec<_> = setup.wire.calls().iter().map(|call| call.0.len()).collect();
    assert_eq!(sizes, [128, 128, 44]);
    let changed = QUOTA.burst(7.0).scope("a");
    setup.ask([QUOTA.scope("a")]);
    setup.ask([QUOTA.scope("b"), changed]);
    setup.settle().await;
    assert_eq!(setup.wire.calls().len(), 5);
    assert_eq!(setup.answered().len(), 302);
}

/// What the commands of a call say, each by its numbers.
fn commands(call: &Call) -> Vec<&[f64]> {
    let (mut commands, mut rest) = (Vec::new(), &call.2[..]);
    while let Some(op) = rest.first() {
        let length = match *op {
            0.0 => 4 + 2 * rest[3] as usize,
            3.0 | 4.0 => 2,
            _ => 3,
        };
        let (command, others) = rest.split_at(length);
        commands.push(command);
        rest = others;
    }
    commands
}

#[tokio::test(start_paused = true)]
async fn waits_that_differ_little_are_merged_by_the_shortest() {
    let mut setup = Setup::new(Scripted::new(0));
    let a = QUOTA.scope("a");
    setup.ask([QUOTA.scope("b")]);
    setup.settle().await;
    for n in 0..100 {
        setup.ask_for([a.clone()], 5e6 + f64::from(n % 7), true);
    }
    // No caller waits for longer than asked, and who does not wait at all is not merged with
    // somebody who does.
    setup.ask_for([a.clone()], 4.9e6, true);
    setup.ask_for([a.clone()], 1.0, true);
    setup.ask_for([a.clone()], 0.0, true);
    setup.settle().await;
    setup.wire.answers.add_permits(2);
    setup.settle().await;
    let call = &setup.wire.calls()[1];
    // They have been queued for 1 ms.
    assert_eq!(call.1, [[100.0, 5e6 - 1e3, 1.0]]);
    let expected: [&[f64]; 2] = [
        &[0.0, 1.0, 4.9e6 - 1e3, 1.0, 1.0, 1.0],
        &[0.0, 2.0, 0.0, 1.0, 1.0, 1.0],
    ];
    assert_eq!(commands(call), expected);
    assert_eq!(setup.answered().len(), 104);
}

#[tokio::test(start_paused = true)]
async fn corrections_of_one_bucket_are_summed() {
    let mut setup = Setup::new(Scripted::new(0));
    let a = QUOTA.scope("a");
    setup.ask([QUOTA.scope("b")]);
    setup.settle().await;
    for _ in 0..10 {
        setup.batcher.give_back(&a, 2.0);
        setup.batcher.give_back(&QUOTA.scope("b"), 1.0);
    }
    for _ in 0..10 {
        setup.batcher.charge(&a, 3.0);
    }
    setup.ask([a.clone()]);
    setup.batcher.charge(&a, 1.0);
    setup.settle().await;
    setup.wire.answers.add_permits(2);
    setup.settle().await;
    let expected: [&[f64]; 5] = [
        &[1.0, 1.0, 20.0],
        &[1.0, 2.0, 10.0],
        &[2.0, 1.0, 30.0],
        &[0.0, 1.0, 0.0, 1.0, 1.0, 1.0],
        &[2.0, 1.0, 1.0],
    ];
    assert_eq!(commands(&setup.wire.calls()[1]), expected);
    assert_eq!(setup.answered().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn requests_are_merged_beside_what_is_given_back() {
    let mut setup = Setup::new(Scripted::new(0));
    let a = QUOTA.scope("a");
    setup.ask([QUOTA.scope("b")]);
    setup.settle().await;
    for _ in 0..40 {
        setup.batcher.give_back(&a, 2.0);
        setup.ask([a.clone()]);
    }
    // A bound on the bucket counts after what was given back before it, and only after that.
    setup.batcher.cap_level(&a, 5.0);
    setup.batcher.give_back(&a, 1.0);
    setup.wire.answers.add_permits(2);
    setup.settle().await;
    let expected: [&[f64]; 4] = [
        &[1.0, 1.0, 80.0],
        &[0.0, 40.0, 0.0, 1.0, 1.0, 1.0],
        &[5.0, 1.0, 5.0],
        &[1.0, 1.0, 1.0],
    ];
    assert_eq!(commands(&setup.wire.calls()[1]), expected);
    assert_eq!(setup.answered().len(), 41);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_bounded_by_its_steps() {
    const STEPS: usize = 256;
    let mut setup = Setup::new(Scripted::new(999));
    let keys: Vec<_> = (0..100).map(|key| QUOTA.scope("s").key(key)).collect();
    for n in 0..2_000 {
        // Costs that the callers choose; pairs; all that can be had at once; corrections.
        setup.ask([keys[0].clone().cost(f64::from(1 + n))]);
        match n % 100 {
            0 => setup.ask(keys.clone()),
            1..50 => setup.ask([keys[1].clone(), keys[2].clone()]),
            _ => {
                setup.batcher.give_back(&keys[3], 1.0);
                setup.batcher.charge(&keys[3], 1.0);
            }
        }
    }
    let asked = setup.asked;
    setup.settle().await;
    assert_eq!(setup.answered().len(), asked);
    let calls = setup.wire.calls();
    for call in &calls {
        let commands = commands(call);
        let steps = commands.iter().map(|command| match command[0] {
            0.0 => command[3],
            _ => 1.0,
        });
        let steps = steps.sum::<f64>() as usize;
        assert!(steps <= STEPS, "{steps} steps");
        // A step of one bucket takes the most bytes of its argument.
        assert!(8 * call.2.len() <= 48 * STEPS, "{}", call.2.len());
    }
    // 2,000 alone, 20 of a hundred, 980 of two and 2,000 corrections: little room is wasted.
    let least = (2_000 + 20 * 100 + 980 * 2 + 2_000usize).div_ceil(STEPS);
    assert!(calls.len() <= 2 * least, "{} of {least}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn requests_for_the_same_many_buckets_share_a_call() {
    let mut setup = Setup::new(Scripted::new(999));
    let keys: Vec<_> = (0..70).map(|key| QUOTA.scope("s").key(key)).collect();
    for _ in 0..30 {
        setup.ask(keys.clone());
        setup.ask([keys[0].clone()]);
    }
    setup.settle().await;
    assert_eq!(setup.answered().len(), 60);
    assert_eq!(setup.wire.calls().len(), 10);
    // What does not fit takes no room.
    let other = |key: usize| QUOTA.scope("t").key(key);
    setup.ask(keys.clone());
    setup.ask((0..60).map(other).collect::<Vec<_>>());
    setup.settle().await;
    let sizes: Vec<_> = setup.wire.calls().iter().map(|call| call.0.len()).collect();
    assert_eq!(sizes[10..], [70, 60]);
    assert_eq!(setup.answered().len(), 62);
}

#[tokio::test(start_paused = true)]
async fn two_quotas_of_one_bucket_delay_no_other() {
    let mut setup = Setup::new(Scripted::new(0));
    let a = [QUOTA.scope("a"), QUOTA.burst(7.0).scope("a")];
    setup.ask([QUOTA.scope("warm-up")]);
    setup.settle().await;
    let mut others = Vec::new();
    for n in 0..1_000 {
        setup.ask([a[n % 2].clone()]);
        others.push(setup.asked);
        setup.ask([QUOTA.scope("other").key(n % 10)]);
    }
    setup.wire.answers.add_permits(2);
    setup.settle().await;
    // All others are in the first call after that.
    let answered = setup.answered();
    assert!(others.iter().all(|other| answered.contains(other)));
    setup.wire.answers.add_permits(9_999);
    setup.settle().await;
    assert_eq!(setup.answered().len(), setup.asked);
    // One for each quota.
    assert_eq!(setup.wire.calls().len(), 3);
    // Those by one quota keep their order.
    let answered = setup.answered();
    for quota in 0..2 {
        let order = answered
            .iter()
            .filter(|number| (**number + 3) % 4 == 2 * quota);
        assert!(order.is_sorted(), "{quota}");
    }
}

/// Each call has the bucket by the quota of the oldest request for it.
#[tokio::test(start_paused = true)]
async fn many_quotas_of_one_bucket_are_decided_in_turn() {
    let mut setup = Setup::new(Scripted::new(999));
    let quotas: Vec<_> = (0..20).map(|n| QUOTA.burst(f64::from(7 + n))).collect();
    for n in 0..400 {
        let scope = quotas[n * n % 20].scope("a");
        match n % 3 {
            0 => setup.ask([scope, QUOTA.scope("b")]),
            _ => setup.ask([scope]),
        }
    }
    setup.settle().await;
    assert_eq!(setup.answered().len(), 400);
    assert!(setup.wire.calls().len() <= 20);
}

#[tokio::test(start_paused = true)]
async fn nothing_overtakes_a_correction_of_its_bucket() {
    let mut setup = Setup::new(Scripted::new(0));
    let (a, changed) = (QUOTA.scope("a"), QUOTA.burst(7.0).scope("a"));
    setup.ask([QUOTA.scope("warm-up")]);
    setup.settle().await;
    setup.ask([a.clone()]);
    setup.batcher.charge(&changed, 3.0);
    setup.ask([a.clone()]);
    setup.ask([a.clone(), QUOTA.scope("b")]);
    setup.ask([QUOTA.scope("b")]);
    setup.ask([changed]);
    setup.wire.answers.add_permits(99);
    setup.settle().await;
    let calls = setup.wire.calls();
    let [_, first, second, third] = &calls[..] else {
        panic!("{calls:?}");
    };
    assert_eq!(first.0, ["|a", "|b"]);
    assert_eq!(first.1, [[1.0, 0.0, 1.0]; 2]);
    assert!(first.2.is_empty());
    // The charge, and whoever is behind it with this quota.
    assert_eq!(second.0, ["|a"]);
    assert_eq!(
        commands(second),
        [&[2.0, 1.0, 3.0][..], &[0.0, 1.0, 0.0, 1.0, 1.0, 1.0],]
    );
    assert_eq!(third.0, ["|a", "|b"]);
    assert_eq!(third.1[0], [1.0, 0.0, 1.0]);
    assert_eq!(setup.answered(), [0, 1, 4, 5, 2, 3]);
}

/// Over a Redis that takes so long for each call, of 128 keys.
fn slow(takes: Duration) -> Setup {
    Setup::new(Scripted {
        takes,
        ..Scripted::new(usize::MAX >> 4)
    })
}

#[tokio::test(start_paused = true)]
async fn a_burst_waits_while_redis_works_it_off() {
    // 160 calls, two at a time.
    let mut setup = slow(PATIENCE / 10);
    for key in 0..20_480 {
        setup.ask([QUOTA.scope("s").key(key)]);
    }
    let start = Instant::now();
    while setup.answered().len() < setup.asked {
        setup.settle().await;
    }
    assert!(start.elapsed() >= 7 * PATIENCE, "{:?}", start.elapsed());
    let answers = setup.answers.lock().expect("no panic");
    let failed = answers.iter().filter(|(_, answer)| answer.is_err());
    assert_eq!(failed.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn lasting_overload_does_not_make_everybody_wait() {
    // 25,600 requests a second, and 1.5 times as many are asked for.
    let mut setup = slow(PATIENCE / 10);
    let start = Instant::now();
    let (mut asked, mut key) = (Vec::new(), 0);
    let mut slowest = [Duration::ZERO; 6];
    let mut failed = [0; 6];
    let mut seen = 0;
    while start.elapsed() < 60 * PATIENCE {
        for _ in 0..39 {
            key += 1;
            asked.push(Instant::now());
            setup.ask([QUOTA.scope("s").key(key)]);
        }
        setup.settle().await;
        let answers = setup.answers.lock().expect("no panic");
        for (number, answer) in &answers[seen..] {
            let at = (asked[*number] - start).as_millis() as usize / 1_000;
            slowest[at] = slowest[at].max(asked[*number].elapsed());
            failed[at] += usize::from(answer.is_err());
        }
        seen = answers.len();
    }
    println!("{slowest:?}, {failed:?}");
    // No more than Redis cannot decide.
    assert!(
        failed.iter().sum::<usize>() <= asked.len() * 2 / 5,
        "{failed:?}"
    );
    assert!(failed[5] > 0);
    // The first second may be a burst; from then on a request is queued for one timeout.
    assert!(slowest.iter().all(|slowest| *slowest <= 11 * PATIENCE));
    let lasting = &slowest[3..];
    assert!(
        lasting.iter().all(|slowest| *slowest <= PATIENCE * 3 / 2),
        "{slowest:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_went_away_before_it_was_sent_takes_nothing() {
    let mut setup = Setup::new(Scripted::new(9));
    setup.ask_for([QUOTA.scope("a")], 0.0, false);
    setup.settle().await;
    assert!(setup.wire.calls().is_empty());
    setup.ask([QUOTA.scope("a")]);
    setup.settle().await;
    assert_eq!(setup.wire.calls().len(), 1);
    assert_eq!(setup.answered(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_answers_all_who_wait_behind_it() {
    let mut setup = Setup::new(Scripted {
        fails: true,
        ..Scripted::new(0)
    });
    setup.ask([QUOTA.scope("a")]);
    setup.settle().await;
    for _ in 0..50 {
        setup.ask([QUOTA.scope("a")]);
    }
    let start = Instant::now();
    setup.wire.answers.add_permits(1);
    setup.settle().await;
    assert!(start.elapsed() <= Duration::from_millis(1));
    assert_eq!(setup.wire.calls().len(), 1);
    let answers = setup.answers.lock().expect("no panic");
    assert_eq!(answers.len(), 51);
    assert!(
        answers
            .iter()
            .all(|(_, answer)| *answer == Err(FailureKind::Timeout))
    );
}

#[tokio::test(start_paused = true)]
async fn what_redis_was_not_told_is_kept_in_the_books() {
    let mut setup = Setup::new(Scripted {
        fails: true,
        ..Scripted::new(0)
    });
    let scope = QUOTA.scope("a");
    setup.batcher.give_back(&scope, 1.0);
    setup.batcher.charge(&scope, 2.0);
    setup.ask([scope.clone()]);
    setup.settle().await;
    setup.batcher.give_back(&scope, 4.0);
    setup.batcher.charge(&scope, 8.0);
    setup.wire.answers.add_permits(1);
    setup.settle().await;
    // What was in flight may have happened: it is charged again, and not given back again.
    let books = setup.books.0.lock().expect("no panic").clone();
    assert_eq!(books, [2.0, -4.0, 8.0]);
    assert_eq!(setup.wire.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_turns_away_demands_but_takes_back_tokens() {
    let mut setup = Setup::new(Scripted::new(0));
    setup.ask([QUOTA.scope("a")]);
    setup.settle().await;
    let most = crate::redis::batch::worker::MAX_QUEUED;
    for _ in 0..most + 5 {
        setup.batcher.give_back(&QUOTA.scope("a"), 1.0);
    }
    setup.ask([QUOTA.scope("a")]);
    let answers = setup.answers.lock().expect("no panic").clone();
    assert_eq!(answers, [(1, Err(FailureKind::Overloaded))]);
}

#[test]
fn a_runtime_that_shuts_down_has_everybody_ask_again() {
    let mut setup = Setup::new(Scripted::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        setup.ask([QUOTA.scope("a")]);
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        setup.ask([QUOTA.scope("a")]);
    });
    drop(runtime);
    assert_eq!(setup.asks_again.lock().expect("no panic")[..], [0, 1]);
    assert!(setup.answered().is_empty());
    assert!(setup.wire.abandoned.load(Ordering::Relaxed));
}

/// Perhaps it was executed: a charge and a hold are made again, a refund is not.
#[test]
fn batch_in_flight_at_a_shutdown_goes_to_the_books() {
    let mut setup = Setup::new(Scripted::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let scope = QUOTA.scope("a");
        setup.batcher.charge(&scope, 5.0);
        setup.batcher.give_back(&scope, 3.0);
        setup.batcher.pause(&scope, Instant::now());
        setup.ask([scope.clone()]);
        while setup.wire.calls().is_empty() {
            tokio::task::yield_now().await;
        }
        // Queued behind it, it is exact.
        setup.batcher.give_back(&scope, 7.0);
    });
    drop(runtime);
    assert_eq!(setup.wire.calls().len(), 1);
    assert_eq!(setup.books.0.lock().expect("no panic")[..], [5.0, -7.0]);
    assert_eq!(setup.books.1.lock().expect("no panic")[..], ["a"]);
    assert_eq!(setup.asks_again.lock().expect("no panic")[..], [0]);
}

#[tokio::test(start_paused = true)]
async fn a_demand_that_contradicts_itself_holds_nobody_up() {
    let mut setup = Setup::new(Scripted::new(9));
    setup.ask([
        QUOTA.scope("b"),
        QUOTA.scope("a"),
        QUOTA.burst(7.0).scope("a"),
    ]);
    setup.ask([QUOTA.scope("a")]);
    setup.settle().await;
    assert_eq!(setup.answered(), [0, 1]);
    let [(keys, ..)] = &setup.wire.calls()[..] else {
        panic!("one call");
    };
    assert_eq!(keys, &["|a"]);
}

/// A batcher that leases, over a Redis that grants all of it.
fn leasing(answers: usize) -> (Setup, Arc<Leases>) {
    leasing_over(Scripted::new(answers))
}

fn leasing_over(wire: Scripted) -> (Setup, Arc<Leases>) {
    let mut setup = Setup::new(wire);
    let leases = Arc::new(Leases::new(1e9, 10_000, AHEAD));
    setup.batcher = Batcher::new(
        setup.wire.clone(),
        Keyspace::new("", [0; 32]),
        setup.known.clone(),
        leases.clone(),
        setup.books.clone(),
    );
    (setup, leases)
}

const HOT: Quota = Quota::per_second(1e6).burst(1_000.0);

fn take(setup: &Setup, leases: &Leases, scope: &Scope) -> bool {
    let params = BucketParams::new(1_000.0, 1e6);
    let leased = leases.take(&scope.id(&[0; 32]).lookup(), params, 1.0);
    if leased.is_some_and(|leased| leased.more) {
        setup.batcher.lease(scope);
    }
    leased.is_some()
}

#[tokio::test(start_paused = true)]
async fn a_hot_bucket_is_leased_used_asked_for_again_and_given_back() {
    let (mut setup, leases) = leasing(usize::MAX >> 4);
    let a = HOT.scope("a");
    for _ in 0..3 {
        for _ in 0..50 {
            setup.ask([a.clone()]);
        }
        setup.settle().await;
    }
    let calls = setup.wire.calls();
    assert!(calls[0].2.is_empty(), "nobody knows how hot it is");
    // A hundred in the first milliseconds, for two milliseconds.
    let leased = calls[1].2[2];
    assert_eq!(calls[1].2[..2], [8.0, 1.0]);
    assert!((50.0..=125.0).contains(&leased), "{leased}");
    // Taken by callers without a call, until half is left; then by one that nobody waits for.
    let before = setup.wire.calls().len();
    while setup.wire.calls().len() == before {
        for _ in 0..25 {
            assert!(take(&setup, &leases, &a));
        }
        setup.settle().await;
    }
    let call = setup.wire.calls().pop().expect("a call");
    assert_eq!(call.1, [[0.0; 3]], "nobody's demand");
    assert_eq!(call.2[..2], [8.0, 1.0]);
    // Unused, all of it goes back.
    let before = setup.wire.calls().len();
    tokio::time::sleep(3 * IDLE_CHECK).await;
    let back = setup.wire.calls()[before..].to_vec();
    assert!(
        back.iter().all(|call| call.2[..2] == [1.0, 1.0]),
        "{back:?}"
    );
    assert!(leases.is_empty());
    let given: f64 = setup
        .wire
        .calls()
        .iter()
        .flat_map(|call| of_op(call, 1.0))
        .sum();
    let leased: f64 = setup
        .wire
        .calls()
        .iter()
        .flat_map(|call| of_op(call, 8.0))
        .sum();
    let used = leased - given;
    assert!(used > 0.0 && used % 25.0 == 0.0, "{used} of {leased}");
}

fn of_op(call: &Call, op: f64) -> Option<f64> {
    (call.2.first() == Some(&op)).then(|| call.2[2])
}

#[tokio::test(start_paused = true)]
async fn a_limiter_that_goes_gives_its_leases_back() {
    for in_flight in [false, true] {
        let (mut setup, leases) = leasing(if in_flight { 1 } else { 2 });
        let a = HOT.scope("a");
        for _ in 0..2 {
            (0..50).for_each(|_| setup.ask([a.clone()]));
            setup.settle().await;
        }
        assert_eq!(take(&setup, &leases, &a), !in_flight);
        let wire = setup.wire.clone();
        drop(setup);
        wire.answers.add_permits(99);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let calls = wire.calls();
        let leased = calls.iter().filter_map(|call| of_op(call, 8.0)).next_back();
        let given = calls.iter().filter_map(|call| of_op(call, 1.0)).next_back();
        let used = if in_flight { 0.0 } else { 1.0 };
        assert!(leased.is_some_and(|leased| leased > 1.0), "{calls:?}");
        assert_eq!(given, leased.map(|leased| leased - used));
        assert!(leases.drain().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_failed_is_asked_for_again() {
    let (mut setup, leases) = leasing(1);
    let a = HOT.scope("a");
    for _ in 0..50 {
        setup.ask([a.clone()]);
    }
    setup.settle().await;
    (0..50).for_each(|_| setup.ask([a.clone()]));
    setup.settle().await;
    assert_eq!(setup.wire.calls().len(), 2, "the second is in flight");
    let id = a.id(&[0; 32]);
    let ask = || leases.ask(&a, &id, BucketParams::new(1_000.0, 1e6), (99.0, 99.0));
    assert!(ask().is_none(), "it is being asked for");
    // The wire answers with too few bytes for a reply.
    setup.wire.cuts.store(true, Ordering::Relaxed);
    setup.wire.answers.add_permits(1);
    setup.settle().await;
    assert!(ask().is_some());
}

/// A lease in hand, which half a hundred callers at a time made: how much.
async fn in_hand(setup: &mut Setup, scope: &Scope) -> f64 {
    for _ in 0..2 {
        (0..50).for_each(|_| setup.ask([scope.clone()]));
        setup.settle().await;
    }
    let calls = setup.wire.calls();
    let leased = calls.iter().filter_map(|call| of_op(call, 8.0)).next_back();
    leased.expect("it is hot")
}

/// Redis comes back empty: what it is told is at most so much, and what the books say besides.
#[tokio::test(start_paused = true)]
async fn what_is_given_back_in_an_outage_counts_once() {
    let (mut setup, _) = leasing(99);
    let known = setup.known.clone();
    // Refills too slowly to matter.
    let scope = Quota::per_day(1.0).burst(1_000.0).scope("a");
    let leased = in_hand(&mut setup, &scope).await;
    let level = || {
        known
            .level(&scope.id(&[0; 32]))
            .expect("not full")
            .0
            .floor()
    };
    assert_eq!(level(), 500.0);
    setup.wire.away.store(true, Ordering::Relaxed);
    tokio::time::sleep(3 * IDLE_CHECK).await;
    assert_eq!(setup.books.0.lock().expect("no panic")[..], [-leased]);
    assert_eq!(level(), 500.0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_ahead_for_costs_that_no_lease_can_pay() {
    let (mut setup, leases) = leasing(99);
    // Over an eighth of the capacity.
    let a = HOT.scope("a").cost(126.0);
    for _ in 0..4 {
        (0..50).for_each(|_| setup.ask([a.clone()]));
        setup.settle().await;
    }
    let calls = setup.wire.calls();
    assert!(calls.iter().all(|call| call.2.is_empty()), "{calls:?}");
    assert!(leases.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_found_none_to_spare_does_not_ask_for_each_token() {
    let (mut setup, leases) = leasing(999);
    let a = HOT.scope("a");
    let leased = in_hand(&mut setup, &a).await;
    setup.wire.scarce.store(true, Ordering::Relaxed);
    let before = setup.wire.calls().len();
    for _ in 0..leased as usize {
        assert!(take(&setup, &leases, &a));
        // Time for a call.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(setup.wire.calls().len() - before, 1, "of {leased}");
}

#[tokio::test(start_paused = true)]
async fn many_leases_that_cool_hold_no_demand_up() {
    let (mut setup, leases) = leasing_over(Scripted {
        takes: PATIENCE / 5,
        ..Scripted::new(9_999)
    });
    let params = BucketParams::new(1_000.0, 1e6);
    let scopes: Vec<_> = (0..3_000).map(|key| HOT.scope("a").key(key)).collect();
    let ask = |scope: &Scope| leases.ask(scope, &scope.id(&[0; 32]), params, (50.0, 50.0));
    assert!(scopes.iter().all(|scope| ask(scope).is_none()));
    setup.settle().await;
    for scope in &scopes {
        ask(scope).expect("hot").answer(10.0, 500.0, Instant::now());
    }
    setup.ask([QUOTA.scope("b")]);
    // Nobody takes of them.
    let before = setup.wire.calls().len();
    while setup.wire.calls().len() <= before + 1 {
        setup.settle().await;
    }
    for _ in 0..10 {
        setup.ask([QUOTA.scope("b")]);
        tokio::time::sleep(PATIENCE / 3).await;
    }
    tokio::time::sleep(3 * IDLE_CHECK).await;
    let answers = setup.answers.lock().expect("no panic").clone();
    assert_eq!(answers.len(), 11);
    let failed = answers.iter().filter(|(_, answer)| answer.is_err());
    assert_eq!(failed.count(), 0, "{answers:?}");
    assert!(leases.is_empty());
    let calls = setup.wire.calls();
    let commands = calls.iter().flat_map(|call| call.2.chunks(3));
    let back: f64 = commands.filter(|of| of[0] == 1.0).map(|of| of[2]).sum();
    assert_eq!(back, 30_000.0);
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_gives_its_leases_back_and_takes_no_more() {
    let (mut setup, leases) = leasing(999);
    let a = HOT.scope("a");
    let leased = in_hand(&mut setup, &a).await;
    assert!(take(&setup, &leases, &a));
    let before = setup.wire.calls().len();
    setup.batcher.return_leases().await;
    let back = setup.wire.calls()[before..].to_vec();
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].2[..3], [1.0, 1.0, leased - 1.0]);
    assert!(!take(&setup, &leases, &a));
    for _ in 0..4 {
        (0..50).for_each(|_| setup.ask([a.clone()]));
        setup.settle().await;
    }
    let calls = setup.wire.calls();
    let later = calls[before + 1..].iter();
    assert!(later.clone().count() > 0);
    assert!(later.clone().all(|call| call.2.is_empty()), "{calls:?}");
    // Where there is nothing to give back, nothing is said.
    let before = setup.wire.calls().len();
    setup.batcher.return_leases().await;
    assert_eq!(setup.wire.calls().len(), before);
}

/// Whatever is replied, everybody is answered, within what was asked for.
#[tokio::test(start_paused = true)]
async fn replies_that_make_no_sense_are_bounded() {
    let first = seed();
    println!("THROTTLE_SEED={first}");
    for seed in (0..2_000).map(|n| first.wrapping_add(n)) {
        let (mut setup, leases) = leasing(usize::MAX >> 4);
        let mut rng = Rng::new(seed);
        *setup.wire.garbles.lock().expect("no panic") = Some(Rng::new(!seed));
        let scopes = ["a", "b", "c"].map(|name| HOT.scope(name));
        let mut asked = Vec::new();
        for _ in 0..4 {
            for _ in 0..1 + rng.below(6) {
                let count = 1 + rng.below(3) * rng.below(2);
                let of: Vec<_> = (0..count).map(|n| scopes[n as usize].clone()).collect();
                let max_wait_us = rng.pick(&[0.0, 1e3, 1e9]);
                asked.push((of.len(), max_wait_us));
                setup.ask_for(of, max_wait_us, true);
            }
            setup.settle().await;
        }
        let answers = setup.answers.lock().expect("no panic");
        assert_eq!(answers.len(), asked.len(), "seed {seed}");
        for (number, answer) in &*answers {
            let (count, max_wait_us) = asked[*number];
            let sane = match answer.as_ref().expect("an answer") {
                Decision::Now { tightest, level } => {
                    *tightest < count && *level <= 1_000.0 && *level >= -1e20
                }
                Decision::Wait { which, wait, .. } => {
                    *which < count && *wait <= Duration::from_micros(max_wait_us as u64)
                }
                Decision::Rejected { which, retry_after } => {
                    *which < count && !retry_after.is_zero() && *retry_after <= LONGEST_WAIT
                }
            };
            assert!(sane, "seed {seed}: {answer:?} to {:?}", asked[*number]);
        }
        let params = BucketParams::new(1_000.0, 1e6);
        for scope in &scopes {
            let id = scope.id(&[0; 32]);
            if let Some((level, _)) = setup.known.level(&id) {
                assert!((-1e20..=1_000.0).contains(&level), "seed {seed}: {level}");
            }
            // No more than an eighth of the capacity was asked for.
            let more = leases.take(&id.lookup(), params, 125.5);
            assert!(more.is_none(), "seed {seed}: {more:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_number_that_makes_no_sense_concerns_its_own_bucket() {
    let mut setup = Setup::new(Scripted::new(9));
    *setup.wire.nan_for.lock().expect("no panic") = Some("|b".to_owned());
    for name in ["a", "b", "c"] {
        setup.ask([QUOTA.scope(name)]);
    }
    setup.settle().await;
    let answers = setup.answers.lock().expect("no panic");
    let expected = |level| Ok(Decision::Now { tightest: 0, level });
    assert_eq!(
        *answers,
        [
            (0, expected(500.0)),
            (1, expected(1_000.0)),
            (2, expected(500.0))
        ]
    );
}

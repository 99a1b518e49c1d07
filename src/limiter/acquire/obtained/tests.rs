use std::{sync::Mutex, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{Obtained, recheck_after};
use crate::{
    Quota,
    bucket::Reservation,
    decision::{DecidedBy, Failure},
    limiter::queue::{Backends, WaitQueues, Waiter},
    scope::{Lookup, Scope, Scopes},
};

const MS: Duration = Duration::from_millis(1);

/// Records which scopes are given back.
#[derive(Default)]
struct GivenBack(Mutex<Vec<String>>);

impl Backends for GivenBack {
    fn queues(&self) -> &WaitQueues<Waiter> {
        unreachable!("nothing is reserved")
    }

    fn give_back_late(&self, scope: &Scope, _: DecidedBy, _: Instant) {
        let mut given_back = self.0.lock().expect("not poisoned");
        given_back.push(scope.name().to_owned());
    }

    fn undo(&self, _: &Scope, _: Reservation, _: DecidedBy) {}

    fn paused_until(&self, _: &Lookup<'_>, _: DecidedBy) -> Option<Instant> {
        None
    }

    fn refresh_pause<'a>(&'a self, _: &'a Scope, _: &Lookup<'_>) -> Option<BoxFuture<'a, ()>> {
        None
    }

    fn spends_local_share(&self, _: &Scope) -> bool {
        false
    }

    fn credit_reservation(&self, _: &Scope) {}

    fn task_panicked(&self, _: &Failure) {}
}

fn scopes<const N: usize>(names: [&'static str; N]) -> Scopes {
    let quota = Quota::per_second(1.0);
    Vec::from(names.map(|name| quota.scope(name))).into()
}

#[test]
fn scopes_due_more_than_75_ms_before_the_latest_are_given_back() {
    let (backends, start) = (GivenBack::default(), Instant::now());
    let scopes = scopes(["early", "unmetered", "aligned", "latest"]);
    let mut obtained = Obtained::default();
    obtained.take(0, DecidedBy::Redis, start);
    obtained.take(1, DecidedBy::Unmetered, start);
    obtained.take(2, DecidedBy::Redis, start + 25 * MS);
    obtained.take(3, DecidedBy::Redis, start + 100 * MS);
    assert_eq!(obtained.latest(), Some(start + 100 * MS));
    assert!(obtained.align(&backends, &scopes, start + 100 * MS));
    assert_eq!(*backends.0.lock().expect("not poisoned"), ["early"]);
    assert_eq!(obtained.oldest(), Some(start + 25 * MS));
    assert!(!obtained.align(&backends, &scopes, start + 100 * MS));
}

#[test]
fn up_to_500_ms_of_a_call_do_not_count_as_late() {
    let start = Instant::now();
    let mut obtained = Obtained::default();
    obtained.take(0, DecidedBy::Redis, start);
    for (call, due) in [(30, 30), (2_000, 530)] {
        obtained.start_asking();
        let asked_at = obtained.asked_at.expect("just asked");
        obtained.answered(asked_at + call * MS);
        assert_eq!(obtained.latest(), Some(start + due * MS), "{call} ms");
        obtained.answered(asked_at + call * MS);
        assert_eq!(obtained.latest(), Some(start + due * MS), "counted once");
    }
}

#[test]
fn rest_is_asked_for_when_its_own_wait_ends_75_ms_before_the_latest() {
    let recheck = |until, own| recheck_after(until * MS, Some(own * MS));
    assert_eq!(recheck(1_000, 800), Some(125 * MS));
    assert_eq!(recheck(1_000, 100), Some(500 * MS), "half way first");
    assert_eq!(recheck(1_000, 924), Some(5 * MS), "at least 5 ms");
    assert_eq!(recheck(1_000, 926), None, "at once");
    assert_eq!(recheck_after(1_000 * MS, None), Some(500 * MS));
    assert_eq!(recheck_after(Duration::ZERO, None), Some(5 * MS));
}

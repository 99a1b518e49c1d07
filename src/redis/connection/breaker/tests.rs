use std::collections::{HashSet, VecDeque};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn passing(now: Instant) -> (Breaker, u64) {
    let mut breaker = Breaker::new();
    assert_eq!(breaker.on(Event::PauseOver, now), Action::Probe);
    let Action::Pass(generation) = breaker.on(Event::ProbeAnswered, now) else {
        panic!("{breaker:?}");
    };
    (breaker, generation)
}

/// Every event in every state that up to four events lead to, from the start and from one failure
/// short of a trip, at times on both sides of `STABLE`.
#[tokio::test(start_paused = true)]
async fn every_transition_is_as_documented() {
    let start = Instant::now();
    let mut failing = passing(start).0;
    for _ in 1..MOST_FAILED {
        failing.on(Event::FailedSingly(1), start);
    }
    let mut edges = HashSet::new();
    let mut seen = HashSet::new();
    let mut queue = VecDeque::from([(Breaker::new(), start, 0), (failing, start, 0)]);
    while let Some((breaker, now, depth)) = queue.pop_front() {
        if depth > 4 || !seen.insert(format!("{breaker:?} {now:?}")) {
            continue;
        }
        for then in [now, now + STABLE / 2, now + STABLE] {
            for generation in 0..=breaker.generations + 1 {
                for event in [
                    Event::Answered(generation),
                    Event::FailedSingly(generation),
                    Event::Failed(generation),
                    Event::PauseOver,
                    Event::ProbeAnswered,
                    Event::ProbeFailed,
                ] {
                    let mut next = breaker;
                    let act = next.on(event, then);
                    check(&breaker, event, then, &next, act);
                    edges.insert(format!(
                        "{} {} {}",
                        name(breaker.phase),
                        name(next.phase),
                        act == Action::Nothing
                    ));
                    if next != breaker {
                        queue.push_back((next, then, depth + 1));
                    }
                }
            }
        }
    }
    let mut edges: Vec<_> = edges.into_iter().collect();
    edges.sort();
    assert_eq!(
        edges,
        [
            "passing passing true",
            "passing tripped false",
            "probing passing false",
            "probing probing true",
            "probing tripped false",
            "tripped probing false",
            "tripped tripped true",
        ]
    );
    assert!(seen.len() > 100, "only {} states", seen.len());
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Passing { .. } => "passing",
        Phase::Tripped => "tripped",
        Phase::Probing => "probing",
    }
}

fn check(before: &Breaker, event: Event, now: Instant, after: &Breaker, act: Action) {
    let shown = format!("{before:?} {event:?} {after:?} {act:?}");
    match (before.phase, event) {
        (
            Phase::Passing {
                generation, since, ..
            },
            Event::Failed(of),
        ) if of == generation => {
            assert_eq!(after.phase, Phase::Tripped, "{shown}");
            let stable = now - since >= STABLE;
            match act {
                Action::Trip(pause) => assert_eq!(pause.is_zero(), stable, "{shown}"),
                _ => panic!("{shown}"),
            }
        }
        (
            Phase::Passing {
                generation, recent, ..
            },
            Event::FailedSingly(of),
        ) if of == generation => {
            let bad = recent.with(true).is_bad();
            assert_eq!(after.phase == Phase::Tripped, bad, "{shown}");
        }
        (Phase::Passing { generation, .. }, Event::Answered(of)) if of == generation => {
            // The success may push the oldest failure out of the window.
            assert_eq!(name(after.phase), "passing", "{shown}");
            assert_eq!(act, Action::Nothing, "{shown}");
        }
        (Phase::Tripped, Event::PauseOver) => {
            assert_eq!(
                (after.phase, act),
                (Phase::Probing, Action::Probe),
                "{shown}"
            );
        }
        (Phase::Probing, Event::ProbeAnswered) => {
            let fresh = before.generations + 1;
            assert_eq!(act, Action::Pass(fresh), "{shown}");
            let expected = Phase::Passing {
                generation: fresh,
                since: now,
                recent: Recent::default(),
            };
            assert_eq!(after.phase, expected, "{shown}");
        }
        (Phase::Probing, Event::ProbeFailed) => {
            assert_eq!(after.phase, Phase::Tripped, "{shown}");
            match act {
                Action::Trip(pause) => {
                    assert!(pause >= FIRST_PAUSE && pause <= LONGEST_PAUSE, "{shown}");
                }
                _ => panic!("{shown}"),
            }
        }
        // Results of earlier connections, and events that this phase ignores.
        _ => assert_eq!((after, act), (before, Action::Nothing), "{shown}"),
    }
}

#[tokio::test(start_paused = true)]
async fn pauses_double_up_to_one_second_until_redis_is_stable() {
    let now = Instant::now();
    let mut breaker = Breaker::new();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        breaker.on(Event::PauseOver, now);
        match breaker.on(Event::ProbeFailed, now) {
            Action::Trip(pause) => pauses.push(pause.as_millis()),
            act => panic!("{act:?}"),
        }
    }
    assert_eq!(pauses, [50, 100, 200, 400, 800, 1_000, 1_000, 1_000]);
    breaker.on(Event::PauseOver, now);
    assert_eq!(breaker.on(Event::ProbeAnswered, now), Action::Pass(1));
    // It flaps.
    let act = breaker.on(Event::Failed(1), now + STABLE - MS);
    assert_eq!(act, Action::Trip(LONGEST_PAUSE));
    breaker.on(Event::PauseOver, now);
    assert_eq!(breaker.on(Event::ProbeAnswered, now), Action::Pass(2));
    let act = breaker.on(Event::Failed(2), now + STABLE);
    assert_eq!(act, Action::Trip(Duration::ZERO));
    breaker.on(Event::PauseOver, now);
    let act = breaker.on(Event::ProbeFailed, now);
    assert_eq!(act, Action::Trip(FIRST_PAUSE));
}

#[tokio::test(start_paused = true)]
async fn trips_when_half_of_the_last_calls_failed_singly() {
    let now = Instant::now();
    let (mut breaker, generation) = passing(now);
    // Every third call fails: that is five or six of sixteen.
    for n in 0..1_000 {
        let event = match n % 3 {
            0 => Event::FailedSingly(generation),
            _ => Event::Answered(generation),
        };
        assert_eq!(breaker.on(event, now), Action::Nothing, "call {n}");
    }
    // Every second one does.
    let trips = (0..32).position(|n| {
        let event = match n % 2 {
            0 => Event::FailedSingly(generation),
            _ => Event::Answered(generation),
        };
        breaker.on(event, now) != Action::Nothing
    });
    assert!(trips.is_some());
    // All of them, from the start.
    let (mut breaker, generation) = passing(now);
    for _ in 1..MOST_FAILED {
        let act = breaker.on(Event::FailedSingly(generation), now);
        assert_eq!(act, Action::Nothing);
    }
    let act = breaker.on(Event::FailedSingly(generation), now);
    assert!(matches!(act, Action::Trip(_)));
}

//! Replies that no healthy Redis sends.

use std::time::Duration;

use super::{
    leases::{HOT, leasing},
    support::{QUOTA, ScriptedRedis, Setup},
};
use crate::{
    bucket::BucketParams,
    clock::LONGEST_WAIT,
    decision::Decision,
    verification::bucket_model::{Rng, seed},
};

/// All requests get answers within the bounds of what they requested.
#[tokio::test(start_paused = true)]
async fn implausible_replies_are_bounded() {
    let first = seed();
    println!("THROTTLE_SEED={first}");
    for seed in (0..2_000).map(|n| first.wrapping_add(n)) {
        let (mut setup, leases) = leasing(usize::MAX >> 4);
        let mut rng = Rng::new(seed);
        *setup.redis.garbles.lock().expect("no panic") = Some(Rng::new(!seed));
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
            if let Some((level, _)) = setup.levels.level(&id) {
                assert!((-1e20..=1_000.0).contains(&level), "seed {seed}: {level}");
            }
            // No more than an eighth of the capacity was requested.
            let more = leases.take(&id.lookup(), params, 125.5);
            assert!(more.is_none(), "seed {seed}: {more:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn implausible_number_affects_only_its_bucket() {
    let mut setup = Setup::new(ScriptedRedis::new(9));
    *setup.redis.nan_for.lock().expect("no panic") = Some("b".to_owned());
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

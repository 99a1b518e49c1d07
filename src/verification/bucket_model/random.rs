//! Reproducible random numbers.

use std::{
    env,
    hash::{BuildHasher, RandomState},
};

/// The generator splitmix64.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u32) -> u32 {
        // The low half of a product: a bias of n in 2^32 does not matter here.
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }

    pub(crate) fn percent(&mut self, chance: u32) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u32) as usize]
    }

    /// From zero to one, inclusive.
    pub(crate) fn part(&mut self) -> f64 {
        f64::from(self.below(u32::MAX)) / f64::from(u32::MAX)
    }
}

/// The seed from `THROTTLE_SEED`, or a new one.
pub(crate) fn seed() -> u64 {
    number("THROTTLE_SEED").unwrap_or_else(|| RandomState::new().hash_one(0))
}

/// The configuration of proptest: prints the seed, and writes no files.
pub(crate) fn seeded() -> proptest::test_runner::Config {
    use proptest::test_runner::{Config, RngSeed};
    let seed = seed();
    println!("THROTTLE_SEED={seed}");
    Config {
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    }
}

/// The number of sequences to try: `THROTTLE_SEQUENCES`, or `full` with `THROTTLE_FULL=1`, or
/// `usual`.
pub(crate) fn sequences(usual: u64, full: u64) -> u64 {
    let long = env::var("THROTTLE_FULL").is_ok_and(|value| value != "0");
    number("THROTTLE_SEQUENCES").unwrap_or(if long { full } else { usual })
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} must be a whole number, not {text:?}")))
}

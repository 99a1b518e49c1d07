//! Where the script stores the values of buckets: in two hashes for each class.

use std::collections::{BTreeMap, HashMap};

use super::Stored;
use crate::{bucket::BucketParams, redis::class::period_us};

/// All hashes of buckets, and the directory.
///
/// It checks the script's promise whenever a bucket is read: the value found is the last one that was
/// written, and if none is found, the bucket is full.
#[derive(Clone, Debug, Default)]
pub(crate) struct Storage {
    /// By their periods in seconds.
    classes: BTreeMap<u64, [Option<Hash>; 2]>,
    /// For each name the periods of its classes, and until when buckets may be there.
    directory: HashMap<String, BTreeMap<u64, f64>>,
    /// The last value of each bucket, and after which progress of the clock it is full.
    last: HashMap<String, (Stored, f64)>,
    /// The time of the last call.
    now: f64,
    /// By how much the clock has gone forward in all. Where it is set back and forward again, that
    /// time counts twice: it is one of the jumps forward that buckets refill by.
    progress: f64,
    /// Without the directory, buckets outside of the class of their quota are not found.
    has_lost_directory: bool,
    /// How many buckets were forgotten because they were full.
    pub(crate) forgotten: usize,
    /// How many were moved to another class.
    pub(crate) moved: usize,
    /// How often hashes were renumbered because the clock was set back.
    pub(crate) renumbered: usize,
}

#[derive(Clone, Debug)]
struct Hash {
    /// The number of its period; negative once the other hash is in use.
    number: f64,
    /// When Redis deletes it, in milliseconds.
    expires: f64,
    /// None: a value that does not count.
    values: HashMap<String, Option<Stored>>,
}

/// The hashes of a class at the time of a call.
struct Class {
    number: f64,
    current: usize,
    /// Whether the other hash has the buckets of the period before.
    has_previous: bool,
    /// Whether the current hash has yet to be created.
    is_new: bool,
}

/// A bucket of a call, before and after it.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) value: Option<Stored>,
    /// Whether there is any value.
    exists: bool,
    /// The period of the class of the caller's quota, in seconds.
    home: u64,
    /// The period of the class in which it was found.
    found: u64,
}

/// The part of a key that is the name.
fn name(key: &str) -> &str {
    key.split_once('/').map_or(key, |(name, _)| name)
}

fn seconds(period_us: f64) -> u64 {
    (period_us / 1e6) as u64
}

impl Storage {
    /// Finds out which hash is that of this period. If the clock was set back, the hashes are
    /// renumbered.
    fn class(&mut self, period: u64, now: f64) -> Class {
        let number = (now / (period as f64 * 1e6)).floor() + 2.0;
        let hashes = self.classes.entry(period).or_default();
        let numbers =
            [0, 1].map(|hash: usize| hashes[hash].as_ref().map_or(0.0, |hash| hash.number));
        let newest = usize::from(numbers[1] > numbers[0]);
        let latest = numbers[newest];
        if latest > number {
            let same = number % 2.0 == newest as f64;
            let number = number + if same { 2.0 } else { 1.0 };
            let has_previous = numbers[1 - newest].abs() == latest - 1.0;
            if number != latest {
                self.renumbered += 1;
                if let Some(hash) = &mut hashes[newest] {
                    hash.number = number;
                }
                match &mut hashes[1 - newest] {
                    Some(hash) if has_previous => hash.number = 1.0 - number,
                    other => *other = None,
                }
            }
            return Class {
                number,
                current: newest,
                has_previous,
                is_new: false,
            };
        }
        let current = (number % 2.0) as usize;
        let class = Class {
            number,
            current,
            has_previous: numbers[1 - current].abs() == number - 1.0,
            is_new: numbers[current] != number,
        };
        if class.is_new {
            // All buckets in them are full. If the clock is set back, they must not be found again.
            hashes[current] = None;
            if !class.has_previous {
                hashes[1 - current] = None;
            }
        }
        class
    }

    fn find_in(&mut self, period: u64, key: &str, now: f64) -> Option<Option<Stored>> {
        let class = self.class(period, now);
        let hashes = &self.classes[&period];
        let value = |hash: usize| hashes[hash].as_ref()?.values.get(key).cloned();
        let current = if class.is_new {
            None
        } else {
            value(class.current)
        };
        current.or_else(|| class.has_previous.then(|| value(1 - class.current))?)
    }

    /// Reads a bucket.
    pub(crate) fn find(&mut self, key: &str, params: BucketParams, now: f64) -> Located {
        self.pass(now);
        self.forget_lapsed(name(key), now);
        let home = seconds(period_us(params));
        let mut found = (home, self.find_in(home, key, now));
        if found.1.is_none() {
            let listed = self.directory.get(name(key)).cloned().unwrap_or_default();
            for (period, _) in listed.iter().filter(|(period, _)| **period != home) {
                if let Some(value) = self.find_in(*period, key, now) {
                    found = (*period, Some(value));
                    break;
                }
            }
        }
        let (found, value) = found;
        let located = Located {
            exists: value.is_some(),
            value: value.flatten(),
            home,
            found,
        };
        self.check(key, &located);
        located
    }

    /// The hashes of classes in which there are no buckets of a name any more are deleted, so that
    /// these are not found again if the clock is set back.
    fn forget_lapsed(&mut self, name: &str, now: f64) {
        let Some(listed) = self.directory.get_mut(name) else {
            return;
        };
        let lapsed: Vec<_> = listed.extract_if(.., |_, until| *until <= now).collect();
        for (period, _) in lapsed {
            self.class(period, now);
        }
    }

    fn pass(&mut self, now: f64) {
        if self.now > 0.0 {
            self.progress += (now - self.now).max(0.0);
        }
        self.now = now;
    }

    fn check(&mut self, key: &str, located: &Located) {
        let Some((last, full_at)) = self.last.get(key).filter(|_| !self.has_lost_directory) else {
            return;
        };
        if let Some(found) = &located.value {
            assert_eq!(found, last, "{key} was found with an old value");
            return;
        }
        let missing = (full_at - self.progress) * last.widest.per_us;
        assert!(
            missing <= 1e-9 * last.widest.capacity,
            "{key} was forgotten {missing} tokens before it is full: {last:?} at {}",
            self.now
        );
        self.last.remove(key);
        self.forgotten += 1;
    }

    /// Writes a bucket. Returns the period of its class, in seconds.
    pub(crate) fn write(
        &mut self,
        key: &str,
        located: &Located,
        value: Stored,
        now: f64,
        recovered: f64,
    ) -> u64 {
        // Until all peers have recovered, the bucket refills in part.
        let slower = if recovered < 1.0 { 10e6 } else { 0.0 };
        let widest = value.widest;
        let full_in = (value.full_in(now) + slower).max(widest.capacity / widest.per_us);
        let mut period = located.home as f64 * 1e6;
        while period < full_in && period < 9e18 {
            period *= 2.0;
        }
        let mut period = seconds(period);
        if located.found == 2 * period {
            period = located.found;
        }
        let class = self.class(period, now);
        let hashes = self.classes.entry(period).or_default();
        if class.is_new {
            if class.has_previous
                && let Some(previous) = &mut hashes[1 - class.current]
            {
                previous.number = 1.0 - class.number;
            }
            let kept = (4.0 * period as f64 * 1_000.0).min(9_007_199_254_740_992.0);
            hashes[class.current] = Some(Hash {
                number: class.number,
                expires: (now / 1_000.0).floor() + kept,
                values: HashMap::new(),
            });
        }
        if let Some(hash) = &mut hashes[class.current] {
            hash.values.insert(key.to_owned(), Some(value.clone()));
        }
        if period != located.found && located.exists {
            self.moved += 1;
            for hash in self
                .classes
                .entry(located.found)
                .or_default()
                .iter_mut()
                .flatten()
            {
                hash.values.remove(key);
            }
        }
        let listed = self.directory.entry(name(key).to_owned()).or_default();
        let us = period as f64 * 1e6;
        if listed
            .get(&period)
            .is_none_or(|until| *until < now + 2.0 * us)
        {
            listed.insert(period, now + 4.0 * us);
        }
        let full_at = self.progress + value.full_in(now);
        self.last.insert(key.to_owned(), (value, full_at));
        period
    }

    /// Deletes the hashes that Redis has expired, and returns which: the periods in seconds, and
    /// which of the two.
    pub(crate) fn expire(&mut self, now: f64) -> Vec<(u64, usize)> {
        let mut expired = Vec::new();
        for (period, hashes) in &mut self.classes {
            for (index, hash) in hashes.iter_mut().enumerate() {
                if hash
                    .as_ref()
                    .is_some_and(|hash| (now / 1_000.0).floor() > hash.expires)
                {
                    *hash = None;
                    expired.push((*period, index));
                }
            }
        }
        expired
    }

    /// Replaces the value of a bucket that is in the hash of the present period, as a foreign client
    /// would. None is a value that does not count. Returns the period of the class, and which hash
    /// that is.
    pub(crate) fn plant(
        &mut self,
        key: &str,
        value: Option<Stored>,
        now: f64,
    ) -> Option<(u64, usize)> {
        let (period, hashes, current) = self.classes.iter_mut().find_map(|(period, hashes)| {
            let number = (now / (*period as f64 * 1e6)).floor() + 2.0;
            let current = (number % 2.0) as usize;
            let hash = hashes[current].as_ref()?;
            let has = hash.number == number && hash.values.contains_key(key);
            has.then_some((*period, hashes, current))
        })?;
        self.last.remove(key);
        for hash in hashes.iter_mut().flatten() {
            hash.values.remove(key);
        }
        if let Some(hash) = &mut hashes[current] {
            hash.values.insert(key.to_owned(), value);
        }
        Some((period, current))
    }

    /// The last value of a bucket, if it is not forgotten.
    pub(crate) fn last(&self, key: &str) -> Option<&Stored> {
        self.last.get(key).map(|(last, _)| last)
    }

    /// How many hashes of buckets there are.
    pub(crate) fn hashes(&self) -> usize {
        self.classes.values().flatten().flatten().count()
    }

    /// Evicts one hash of buckets, counted from zero.
    pub(crate) fn evict(&mut self, which: usize) {
        let hashes = self.classes.values_mut().flatten();
        if let Some(hash) = hashes.filter(|hash| hash.is_some()).nth(which)
            && let Some(hash) = hash.take()
        {
            self.last.retain(|key, _| !hash.values.contains_key(key));
        }
    }

    /// Evicts the directory.
    pub(crate) fn evict_directory(&mut self) {
        self.directory.clear();
        self.has_lost_directory = true;
    }
}

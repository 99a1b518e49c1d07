//! Every order in which two threads may execute it.

use std::sync::Arc;

use loom::{
    model,
    sync::{
        Mutex, atomic,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

#[allow(clippy::duplicate_mod, reason = "with the atomics of loom")]
#[path = "seqlock.rs"]
mod seqlock;

use self::seqlock::SeqLock;

type Pair = SeqLock<2>;

/// Both words, which `set` makes equal.
fn get(pair: &Pair) -> Option<u64> {
    let (first, second) = pair.read(|word| Some((word(0), word(1))))?;
    assert_eq!(first, second, "words of two records");
    Some(first)
}

fn set(pair: &Pair, value: u64) {
    pair.write([value; 2].into_iter());
}

#[test]
fn a_reader_finds_one_record_or_none() {
    model(|| {
        let pair = Arc::new(Pair::new());
        set(&pair, 1);
        let writer = {
            let pair = pair.clone();
            thread::spawn(move || set(&pair, 2))
        };
        get(&pair);
        writer.join().unwrap();
        assert_eq!(get(&pair), Some(2));
    });
}

/// A bucket is raised after its record is cleared: who knows of the raise finds no record.
#[test]
fn a_record_is_not_found_after_it_was_cleared() {
    model(|| {
        let shared = Arc::new((Pair::new(), AtomicBool::new(false)));
        set(&shared.0, 1);
        let writer = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.0.clear();
                shared.1.store(true, Ordering::Release);
            })
        };
        if shared.1.load(Ordering::Acquire) {
            assert_eq!(get(&shared.0), None);
        }
        writer.join().unwrap();
    });
}

#[test]
fn writers_under_a_lock_leave_one_record() {
    model(|| {
        let shared = Arc::new((Pair::new(), Mutex::new(())));
        let write = |shared: &(Pair, Mutex<()>), value| {
            let _lock = shared.1.lock().unwrap();
            shared.0.clear();
            set(&shared.0, value);
        };
        let other = {
            let shared = shared.clone();
            thread::spawn(move || write(&shared, 1))
        };
        write(&shared, 2);
        get(&shared.0);
        other.join().unwrap();
        assert!(get(&shared.0).is_some());
    });
}

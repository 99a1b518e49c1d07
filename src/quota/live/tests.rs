use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::*;

#[test]
fn a_change_is_read_as_a_whole_and_in_order() {
    let of = |n: u32| Quota::per_second(f64::from(n)).burst(f64::from(10 * n));
    let quota = LiveQuota::new(of(1));
    let over = AtomicBool::new(false);
    thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                let mut last = 0.0;
                while !over.load(Ordering::Relaxed) {
                    let read = quota.get();
                    assert_eq!(read.capacity(), 10.0 * read.rate());
                    assert!(read.rate() >= last, "an earlier quota is read again");
                    last = read.rate();
                }
            });
        }
        for n in 1..100_000 {
            quota.set(of(n));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(quota.get(), of(99_999));
}

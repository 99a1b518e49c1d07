use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

#[test]
fn names_beyond_the_first_thousand_share_one_series() {
    let count = |table: &Handles| table.scopes.len();
    let mut handles = Handles::default();
    for n in 0..3 * MOST_NAMES {
        handles.scope(&format!("scope-{n}"));
    }
    assert!(count(&handles) <= MOST_NAMES + 1, "{}", count(&handles));
    let mut other_thread = Handles::default();
    for n in (0..3 * MOST_NAMES).rev() {
        other_thread.scope(&format!("scope-{n}"));
    }
    let mut names: Vec<_> = handles.scopes.keys().collect();
    let mut others: Vec<_> = other_thread.scopes.keys().collect();
    names.sort_unstable();
    others.sort_unstable();
    assert_eq!(names, others, "the same ones in all threads");
    // Neither allocated nor locked for, however many there are.
    let counted = allocation_counter::measure(|| {
        for _ in 0..100 {
            handles.scope("beyond them");
        }
    });
    assert_eq!(counted.count_total, 0);
}

#[test]
fn fractions_of_tokens_add_up() {
    use std::sync::Arc;

    #[derive(Default)]
    struct Sum(AtomicU64);
    impl metrics::CounterFn for Sum {
        fn increment(&self, value: u64) {
            self.0.fetch_add(value, Ordering::Relaxed);
        }
        fn absolute(&self, _: u64) {}
    }
    let sum = Arc::new(Sum::default());
    let mut scope = ScopeHandles::new("s");
    scope.costs[Cost::Settled as usize] = Some((Counter::from_arc(sum.clone()), 0.0));
    for _ in 0..1_000 {
        scope.cost(&metrics::NoopRecorder, Cost::Settled, 0.75);
    }
    assert_eq!(sum.0.load(Ordering::Relaxed), 750);
}

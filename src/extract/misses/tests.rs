use super::*;

#[test]
fn limit_is_reported_once_and_not_after_a_find() {
    let misses = Misses::default();
    let reports = (0..1_000).filter(|_| misses.clone().reach_limit(true));
    assert_eq!(reports.collect::<Vec<_>>(), [99]);

    let misses = Misses::default();
    let at = |nth: &i32| misses.reach_limit(*nth != 98);
    assert_eq!((0..1_000).filter(at).count(), 0);
}

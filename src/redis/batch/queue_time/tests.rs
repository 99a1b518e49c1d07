use super::*;

const TIMEOUT: Duration = Duration::from_millis(100);

#[test]
fn burst_may_take_ten_times_as_long_as_a_call() {
    let (mut queue_time, start) = (QueueTime::default(), Instant::now());
    for ms in 0..=1_000 {
        let queued = Duration::from_millis(ms);
        let longest = queue_time.longest(queued, TIMEOUT, start + queued);
        assert_eq!(longest, 10 * TIMEOUT, "after {queued:?}");
    }
    // Once it is worked off, the next burst may take as long.
    let later = start + 12 * TIMEOUT;
    assert_eq!(
        queue_time.longest(Duration::ZERO, TIMEOUT, later),
        10 * TIMEOUT
    );
    let later = later + 9 * TIMEOUT;
    assert_eq!(
        queue_time.longest(9 * TIMEOUT, TIMEOUT, later),
        10 * TIMEOUT
    );
}

#[test]
fn standing_queue_is_cut_until_it_is_short() {
    let (mut queue_time, start) = (QueueTime::default(), Instant::now());
    let mut at = |ms, queued| {
        let now = start + Duration::from_millis(ms);
        queue_time.longest(Duration::from_millis(queued), TIMEOUT, now)
    };
    assert_eq!(at(0, 101), 10 * TIMEOUT);
    assert_eq!(at(999, 900), 10 * TIMEOUT);
    assert_eq!(at(1_000, 900), TIMEOUT);
    // The rest is just short enough, and grows again.
    assert_eq!(at(1_100, 99), TIMEOUT);
    assert_eq!(at(1_200, 101), TIMEOUT);
    assert_eq!(at(1_300, 50), 10 * TIMEOUT);
    assert_eq!(at(1_400, 101), 10 * TIMEOUT);
}

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const RESERVE: Duration = Duration::from_secs(5);

fn reply(alive: u32, missing: u32) -> HeartbeatReply {
    HeartbeatReply { alive, missing }
}

#[tokio::test(start_paused = true)]
async fn the_largest_count_of_the_last_minute_is_used() {
    let start = Instant::now();
    let peers = Peers::new(3, RESERVE);
    assert_eq!(peers.processes(), 3.0, "the hint, before any contact");
    // A heartbeat each second, with this count.
    let heartbeats = |seconds: std::ops::RangeInclusive<u32>, alive, processes| {
        for at in seconds.clone() {
            peers.record(reply(alive, 0), start + at * SECOND);
        }
        assert_eq!(peers.processes(), processes, "after {seconds:?}");
    };
    heartbeats(1..=1, 1, 3.0);
    heartbeats(2..=2, 4, 4.0);
    heartbeats(3..=32, 2, 4.0);
    heartbeats(33..=33, 3, 4.0);
    heartbeats(34..=62, 2, 4.0);
    heartbeats(63..=63, 2, 3.0);
    heartbeats(64..=93, 2, 3.0);
    heartbeats(94..=94, 2, 2.0);
    // An outage of one hour, after which the first limiter to recover counts no other.
    heartbeats(3_694..=3_694, 1, 2.0);
    heartbeats(3_695..=3_754, 1, 2.0);
    heartbeats(3_755..=3_755, 1, 1.0);
    // The hint holds for a minute as well.
    let peers = Peers::new(3, RESERVE);
    for at in 0..=61 {
        peers.record(reply(1, 0), start + at * SECOND);
        let processes = if at <= 60 { 3.0 } else { 1.0 };
        assert_eq!(peers.processes(), processes, "at {at} s");
    }
    let peers = Peers::new(1, RESERVE);
    peers.record(reply(8, 0), start);
    assert_eq!(peers.processes(), 8.0, "counts age only by heartbeats");
}

#[tokio::test(start_paused = true)]
async fn reachable_peers_reserve_the_rate_of_missing_ones() {
    let start = Instant::now();
    let peers = Peers::new(1, RESERVE);
    assert_eq!(peers.part(Instant::now()), RatePart::FULL);
    peers.record(reply(4, 0), start);
    assert_eq!(peers.part(Instant::now()), RatePart::FULL);
    peers.record(reply(1, 3), start);
    assert_eq!(peers.part(Instant::now()).of_rate, 0.25);
    peers.record(reply(3, 1), start);
    assert_eq!(
        (peers.part(Instant::now()).of_rate, peers.missing()),
        (0.75, 1)
    );
    // The first limiter to recover counts no other, because Redis has lost its data.
    peers.expect_all_until(start + 2 * SECOND, start);
    peers.record(reply(1, 0), start + SECOND);
    assert_eq!(peers.recovered(), 0.25);
    peers.record(reply(1, 0), start + 2 * SECOND);
    assert_eq!(peers.part(Instant::now()), RatePart::FULL);
}

#[tokio::test(start_paused = true)]
async fn at_most_three_quarters_are_reserved() {
    let peers = Peers::new(1, RESERVE);
    peers.record(reply(1, 99), Instant::now());
    assert_eq!(peers.recovered(), 0.01);
    assert_eq!(peers.part(Instant::now()).of_rate, MIN_PART);
}

#[tokio::test(start_paused = true)]
async fn reservation_ends_after_its_time() {
    let peers = Peers::new(1, RESERVE);
    let left = |peers: &Peers| peers.part(Instant::now()).lasts_us / 1e6;
    peers.record(reply(3, 1), Instant::now());
    assert_eq!(left(&peers), 5.0);
    tokio::time::advance(2 * SECOND).await;
    peers.record(reply(3, 1), Instant::now());
    assert_eq!(left(&peers), 3.0);
    // With another one missing, the reservation of all is longer.
    peers.record(reply(2, 2), Instant::now());
    assert_eq!(left(&peers), 5.0);
    peers.record(reply(2, 1), Instant::now());
    assert_eq!(left(&peers), 5.0);
    tokio::time::advance(9 * SECOND / 2).await;
    assert_eq!(left(&peers), 1.0, "until the next heartbeat");
    peers.record(reply(2, 0), Instant::now());
    assert_eq!(peers.part(Instant::now()), RatePart::FULL);
}

#[tokio::test(start_paused = true)]
async fn data_loss_expects_only_the_limiters_of_the_last_heartbeat() {
    let peers = Peers::new(1, RESERVE);
    // Four more within the last minute, which have deregistered: a deployment.
    peers.record(reply(8, 0), Instant::now());
    tokio::time::advance(SECOND).await;
    peers.record(reply(4, 0), Instant::now());
    peers.expect_as_before(Instant::now());
    peers.record(reply(1, 0), Instant::now());
    assert_eq!(peers.part(Instant::now()).of_rate, 0.25);
    peers.record(reply(4, 0), Instant::now());
    assert_eq!(peers.part(Instant::now()), RatePart::FULL);
    tokio::time::advance(SECOND).await;
    // After a second loss, it still expects the same four.
    peers.record(reply(1, 0), Instant::now());
    peers.expect_as_before(Instant::now());
    peers.record(reply(2, 0), Instant::now());
    assert_eq!(peers.part(Instant::now()).of_rate, 0.5);
    tokio::time::advance(SILENCE + RESERVE).await;
    peers.record(reply(2, 0), Instant::now());
    assert_eq!(peers.part(Instant::now()), RatePart::FULL);
}

#[test]
fn waits_account_for_the_full_rate_later() {
    let part = RatePart {
        of_rate: 0.25,
        lasts_us: 5e6,
    };
    // A wait of a day at the full rate is four days at a quarter of it.
    let day = 86_400e6;
    let real = part.shorten(4.0 * day);
    assert!(real >= day && real <= day + 5e6, "{real}");
    for us in [0.0, 1.0, 4e6, 5e6, 6e6, day] {
        assert!((part.shorten(part.lengthen(us)) - us).abs() < 1e-3, "{us}");
        assert!(part.shorten(us) <= us);
        assert_eq!(RatePart::FULL.shorten(us), us);
        assert_eq!(RatePart::FULL.lengthen(us), us);
    }
    let max_wait = 2e6;
    let rejected = 4.0 * day - part.lengthen(max_wait);
    let retry_after = part.retry_after(rejected, max_wait);
    assert!((retry_after + max_wait - real).abs() < 1e-3);
    assert_eq!(RatePart::FULL.retry_after(7e6, max_wait), 7e6);
    // The rate does not shorten a pause.
    assert_eq!(part.with_pause(60e6).shorten(61e6), 60.25e6);
    assert_eq!(part.with_pause(2e6).shorten(9e6), 6e6);
}

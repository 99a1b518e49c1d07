//! A quota as text and as numbers.

use proptest::prelude::*;

use super::{super::parse::UNITS, *};

fn read(text: &str) -> Quota {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn usual_spellings_are_parsed() {
    assert_eq!(read("100/min"), Quota::per_minute(100.0));
    assert_eq!(read("10/s burst 50"), Quota::per_second(10.0).burst(50.0));
    assert_eq!(
        read("500/7days"),
        Quota::per(Duration::from_secs(7 * 86_400), 500.0)
    );
    assert_eq!(
        read("  1_000 PER 5 Minutes  Burst 2.5 "),
        Quota::per(Duration::from_secs(300), 1000.0).burst(2.5)
    );
    assert_eq!(read("1/250ms").rate(), 4.0);
    assert_eq!(read("0.5/h").rate(), 0.5 / 3_600.0);
}

/// The cost defaults to one token: a smaller burst would admit no request.
#[test]
fn the_default_burst_is_at_least_one_token() {
    for (quota, text) in [
        (Quota::per_second(0.5), "0.5/s"),
        (Quota::per_second(0.2), "0.2/s"),
        (Quota::per_minute(1e-9), "0.000000001/min"),
        (Quota::per(Duration::from_millis(100), 0.999), "0.999/100ms"),
    ] {
        assert_eq!(quota.capacity(), 1.0, "{text}");
        assert_eq!(quota.to_string(), text);
        assert_eq!(read(text), quota);
        assert_eq!(read(&format!("{text} burst 1")), quota);
    }
    assert_eq!(Quota::per_second(1.5).capacity(), 1.5);
}

#[test]
fn a_burst_below_one_token_is_an_error() {
    for burst in [0.999, 0.5, 1e-300] {
        let made = std::panic::catch_unwind(|| Quota::per_second(5.0).burst(burst));
        assert!(made.is_err(), "{burst}");
        let text = format!("5/s burst {burst}");
        let error = text.parse::<Quota>().expect_err("no request passes");
        assert_eq!((error.part(), error.span().start), (&text[10..], 10));
        assert!(error.to_string().contains("at least 1"), "{error}");
    }
    assert_eq!(Quota::per_second(0.1).burst(1.0).capacity(), 1.0);
}

/// Up to 2^53 a double counts single tokens.
#[test]
fn the_largest_burst_counts_single_tokens() {
    const MOST: f64 = 9_007_199_254_740_992.0;
    for tokens in [1.2e12, 1e15, MOST, 1e18, u64::MAX as f64, 1e300, f64::MAX] {
        for quota in [
            Quota::per_second(tokens),
            Quota::per_day(tokens),
            Quota::per_second(1.0).burst(tokens),
        ] {
            assert_eq!(quota.capacity(), tokens.min(MOST), "{quota}");
            assert_ne!(quota.capacity() - 1.0, quota.capacity(), "{quota}");
            // For any time of a refill or a pause.
            let longest = crate::clock::to_us(Duration::MAX);
            assert!((quota.per_us * longest).is_finite(), "{quota}");
            assert_eq!(read(&quota.to_string()), quota);
        }
    }
}

/// Of such a rate nothing would be left in a microsecond, and the script takes a rate of zero
/// for damage.
#[test]
fn the_smallest_rate_refills() {
    assert!(Quota::per_second(1e-300).per_us.is_normal());
    for tokens in [1e-302, 1e-318, f64::MIN_POSITIVE] {
        assert!(std::panic::catch_unwind(|| Quota::per_second(tokens)).is_err());
        assert!(format!("{tokens}/s").parse::<Quota>().is_err());
    }
}

#[test]
fn panics_name_the_place_where_the_quota_is_written() {
    use std::panic::{self, catch_unwind};
    thread_local! {
        static PLACES: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    let before = panic::take_hook();
    panic::set_hook(Box::new(|info| {
        let place = info.location().expect("a place");
        let place = format!("{}:{}", place.file(), place.line());
        PLACES.with_borrow_mut(|places| places.push(place));
    }));
    let line = line!();
    let made = [
        catch_unwind(|| Quota::per_second(0.0)),
        catch_unwind(|| Quota::per_minute(-1.0)),
        catch_unwind(|| Quota::per_hour(f64::NAN)),
        catch_unwind(|| Quota::per_day(f64::INFINITY)),
        catch_unwind(|| Quota::per(Duration::ZERO, 1.0)),
        catch_unwind(|| Quota::per(Duration::MAX, 1.0)),
        catch_unwind(|| Quota::per_second(1e-320)),
        catch_unwind(|| Quota::per_second(1.0).burst(0.0)),
        catch_unwind(|| Quota::per_second(1.0).burst(0.5)),
    ];
    panic::set_hook(before);
    assert!(made.iter().all(Result::is_err));
    let expected = (2..11).map(|at| format!("{}:{}", file!(), line + at));
    assert_eq!(PLACES.take(), expected.collect::<Vec<_>>());
}

#[test]
fn errors_point_at_the_part() {
    for (text, part, at) in [
        ("", "", 0),
        ("abc/s", "abc", 0),
        ("0/s", "0", 0),
        ("-1/s", "-1", 0),
        ("nan/s", "nan", 0),
        ("inf/s", "inf", 0),
        ("1e400/s", "1e400", 0),
        ("5", "", 1),
        ("5 each s", "each", 2),
        ("5/", "", 2),
        ("5/0s", "0", 2),
        ("5/99999999999999999999days", "99999999999999999999", 2),
        ("5/parsec", "parsec", 2),
        ("5/s bursts 3", "bursts", 4),
        ("5/s burst", "", 9),
        ("5/s burst 0", "0", 10),
        ("5/s burst 3 more", "more", 12),
    ] {
        let error = text.parse::<Quota>().expect_err(text);
        assert_eq!(
            (error.part(), error.span().start),
            (part, at),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn bad_numbers_panic_where_they_are_written() {
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(std::panic::catch_unwind(|| Quota::per_second(bad)).is_err());
        assert!(std::panic::catch_unwind(|| Quota::per_second(1.0).burst(bad)).is_err());
    }
    assert!(std::panic::catch_unwind(|| Quota::per(Duration::ZERO, 1.0)).is_err());
    assert!(std::panic::catch_unwind(|| Quota::per(Duration::MAX, 1.0)).is_err());
}

proptest! {
    #![proptest_config(crate::verification::bucket_model::seeded())]

    #[test]
    fn prints_what_it_reads(
        tokens in prop_oneof![1e-9..1e20f64, (1u32..1000).prop_map(f64::from)],
        burst in proptest::option::of(1.0..1e20f64),
        count in 1u64..5_000,
        unit in 0usize..UNITS.len(),
    ) {
        let quota = Quota::per(Duration::from_nanos(count * UNITS[unit].1), tokens);
        let quota = burst.map_or(quota, |burst| quota.burst(burst));
        prop_assert_eq!(read(&quota.to_string()), quota, "{}", quota);
    }

    #[test]
    fn never_panics(text in "\\PC{0,24}|[0-9a-z/ .e+-]{0,24}") {
        if let Err(error) = text.parse::<Quota>() {
            prop_assert!(error.span().end <= text.len());
            let _ = (error.part(), error.to_string());
        }
    }
}

#[cfg(feature = "serde")]
#[test]
fn is_text_in_configuration() {
    let quota = Quota::per_minute(60.0).burst(20.0);
    let json = serde_json::to_string(&quota).expect("a string");
    assert_eq!(json, r#""60/min burst 20""#);
    assert_eq!(
        serde_json::from_str::<Quota>(&json).expect("reads back"),
        quota
    );
    let error = serde_json::from_str::<Quota>(r#""60/s burst 0.5""#).expect_err("too little");
    assert!(error.to_string().contains("at least 1"), "{error}");
    let error = serde_json::from_str::<Quota>(r#""60/eon""#).expect_err("no unit");
    assert!(error.to_string().contains("eon"), "{error}");
}

use super::*;

#[test]
fn ceil_equals_f64_ceil() {
    for x in [
        0.0,
        1e-300,
        0.5,
        1.0,
        1.5,
        -0.5,
        -1.5,
        1e9 + 0.25,
        4_503_599_627_370_495.5,
        4_503_599_627_370_496.0,
        1e300,
        f64::INFINITY,
        f64::NEG_INFINITY,
    ] {
        assert_eq!(ceil(x), x.ceil(), "{x}");
    }
    assert!(ceil(f64::NAN).is_nan());
}

use super::*;

fn read(numbers: [f64; 3]) -> Result<(Answer, Option<f64>), Failure> {
    let numbers = numbers
        .iter()
        .chain(&[1.0, 1.7e12])
        .flat_map(|number| number.to_le_bytes());
    let reply: Vec<u8> = b"identity".iter().copied().chain(numbers).collect();
    Heartbeat::read(&reply)
}

#[test]
fn malformed_replies_are_errors() {
    let (answer, time) = read([7.0, 3.0, 1.0]).expect("well-formed");
    let Answer::Counted { peers, pauses, .. } = answer else {
        panic!("{answer:?}");
    };
    assert_eq!((peers.alive, peers.missing, time), (3, 1, Some(1.7e12)));
    assert!(pauses);
    for numbers in [
        [7.0, 4_294_967_295.0, 0.0],
        [7.0, 1.0, 4_294_967_295.0],
        [7.0, 4_294_967_295.0, 4_294_967_295.0],
        [7.0, f64::NAN, 0.0],
        [7.0, 1.0, f64::NAN],
        [7.0, f64::INFINITY, 0.0],
        [7.0, 0.0, 1.0],
        [7.0, 1.0, -1.0],
        [f64::NAN, 1.0, 0.0],
        [-1.0, 1.0, 0.0],
        [f64::INFINITY, 1.0, 0.0],
    ] {
        let failure = read(numbers).expect_err("malformed");
        assert!(failure.single && failure.advice.is_some(), "{numbers:?}");
    }
    let last = Heartbeat::read(b"").expect("the last");
    assert_eq!(last, (Answer::None, None));
    Heartbeat::read(b"no").expect_err("cut short");
}

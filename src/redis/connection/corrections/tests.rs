use super::*;

fn debts(n: usize) -> Vec<Debt> {
    (0..n)
        .map(|n| Debt {
            id: format!("s{n}").into_bytes().into(),
            params: BucketParams::new(10.0, 1.0),
            tokens: 3.0,
            wait_us: 0.0,
            largest_cost: 0.0,
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn write_back_keeps_its_amounts_until_it_is_confirmed() {
    let mut write_backs = WriteBacks::default();
    write_backs.add(&debts(1), Instant::now());
    let call = |write_backs: &WriteBacks| {
        let call = write_backs
            .first()
            .map(|first| first.call(&Keyspace::new("p:", [0; 32]), "me", Instant::now()));
        call.map(|call| (call.keys, call.argument))
    };
    let first = call(&write_backs).expect("one");
    write_backs.add(&debts(300), Instant::now());
    assert_eq!(call(&write_backs), Some(first), "unchanged until confirmed");
    let mut seen = Vec::new();
    while let Some((keys, _)) = call(&write_backs) {
        assert!(keys.len() <= 128);
        seen.push((
            String::from_utf8(keys[0].clone()).expect("text"),
            keys.len(),
        ));
        write_backs.confirm(seen.len() as u64);
    }
    assert_eq!(
        seen,
        [
            ("p:|#paid:me:1".to_owned(), 2),
            ("p:|#paid:me:2".to_owned(), 128),
            ("p:|#paid:me:3".to_owned(), 128),
            ("p:|#paid:me:4".to_owned(), 47),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn debt_that_has_refilled_is_forgiven() {
    let mut write_backs = WriteBacks::default();
    write_backs.add(&debts(1), Instant::now());
    let keys = |write_backs: &WriteBacks| {
        let first = write_backs.first().expect("one");
        first
            .call(&Keyspace::new("p:", [0; 32]), "me", Instant::now())
            .keys
            .len()
    };
    tokio::time::advance(Duration::from_secs(12)).await;
    assert_eq!(keys(&write_backs), 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(keys(&write_backs), 1);
}

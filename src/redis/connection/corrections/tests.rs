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

/// The fields of a call as text, behind the byte with which names begin that no scope has.
fn fields(call: &Call) -> Vec<String> {
    let fields = call.arguments.fields();
    let text = fields.map(|field| field.strip_prefix(&[0xFF]).unwrap_or(field).to_vec());
    text.map(|text| String::from_utf8(text).expect("text"))
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
        call.map(|call| fields(&call))
    };
    let first = call(&write_backs).expect("one");
    write_backs.add(&debts(300), Instant::now());
    assert_eq!(call(&write_backs), Some(first), "unchanged until confirmed");
    let mut seen = Vec::new();
    while let Some(fields) = call(&write_backs) {
        assert!(fields.len() <= 128);
        seen.push((fields[0].clone(), fields.len()));
        write_backs.confirm(seen.len() as u64);
    }
    assert_eq!(
        seen,
        [
            ("#paid:me:1".to_owned(), 2),
            ("#paid:me:2".to_owned(), 128),
            ("#paid:me:3".to_owned(), 128),
            ("#paid:me:4".to_owned(), 47),
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
            .arguments
            .buckets()
    };
    tokio::time::advance(Duration::from_secs(12)).await;
    assert_eq!(keys(&write_backs), 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(keys(&write_backs), 1);
}

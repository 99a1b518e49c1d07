use proptest::prelude::*;

use super::*;
use crate::quota::Quota;

const BASE: Scope = Quota::per_second(1.0).scope("base");

/// Finds one part of the request.
struct Part(usize);

impl KeyExtractor<Vec<Option<String>>> for Part {
    fn scope(&self, base: &Scope, req: &Vec<Option<String>>) -> Option<Scope> {
        Some(base.key(req[self.0].as_ref()?))
    }
}

/// Sets no key, but a cost.
struct Expensive;

impl<Req> KeyExtractor<Req> for Expensive {
    fn scope(&self, base: &Scope, _: &Req) -> Option<Scope> {
        Some(base.clone().cost(5.0))
    }
}

fn joined(parts: &[&str]) -> Scope {
    let req = parts.iter().map(|part| Some((*part).to_owned())).collect();
    (Part(0), Part(1)).scope(&BASE, &req).expect("both")
}

#[test]
fn a_tuple_has_the_bucket_of_its_keys() {
    for parts in [["GET", "192.0.2.1"], ["a/b", "~"], ["", ""]] {
        assert!(joined(&parts).same_bucket(&BASE.keys(parts)), "{parts:?}");
        assert!(!joined(&parts).same_bucket(&BASE.key(parts.join("/"))));
    }
    let req = vec![Some("x".to_owned())];
    let scope = (Expensive, Part(0))
        .scope(&BASE.key("old"), &req)
        .expect("both");
    assert!(!scope.same_bucket(&BASE.key("x")));
    assert!(!scope.same_bucket(&BASE.keys(["", "x"])));
    assert_eq!(scope.tokens(), 5.0, "the cost is kept");
}

#[test]
fn a_missing_part_is_a_missing_key() {
    let req = vec![Some("x".to_owned()), None];
    assert!((Part(0), Part(1)).scope(&BASE, &req).is_none());
    assert!((Part(1), Part(0)).scope(&BASE, &req).is_none());
}

proptest! {
    #![proptest_config(crate::verification::bucket_model::seeded())]

    /// Also for nested tuples.
    #[test]
    fn different_combinations_have_different_buckets(
        one in proptest::collection::vec("[a/~01é]{0,3}", 3),
        two in proptest::collection::vec("[a/~01é]{0,3}", 3),
    ) {
        let some = |parts: &[String]| parts.iter().cloned().map(Some).collect::<Vec<_>>();
        let (a, b) = (some(&one), some(&two));
        let flat = (Part(0), Part(1), Part(2));
        let nested = ((Part(0), Part(1)), Part(2));
        for keys in [
            [flat.scope(&BASE, &a), flat.scope(&BASE, &b)],
            [nested.scope(&BASE, &a), nested.scope(&BASE, &b)],
        ] {
            let [x, y] = keys.map(|scope| scope.expect("all there"));
            prop_assert_eq!(x.same_bucket(&y), one == two);
            prop_assert!(x.same_bucket(&BASE.keys(&one)));
        }
    }
}

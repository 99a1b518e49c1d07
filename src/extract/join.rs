//! Tuples: of keys, a bucket for each combination; of limits, all at once.

use super::{KeyExtractor, ScopeExtractor};
use crate::scope::{Scope, Scopes};

macro_rules! tuples {
    ($($first:ident $($other:ident)+;)*) => {$(
        /// One bucket for each combination, as [`Scope::keys`]; none where any of them finds no
        /// key.
        #[allow(non_snake_case, reason = "the names of the types stand for the values")]
        impl<Req, $first, $($other),+> KeyExtractor<Req> for ($first, $($other),+)
        where
            $first: KeyExtractor<Req>,
            $($other: KeyExtractor<Req>),+
        {
            fn scope(&self, base: &Scope, req: &Req) -> Option<Scope> {
                let ($first, $($other),+) = self;
                // Each continues what the one before has made of the base.
                let last = base.unkeyed();
                let $first = $first.scope(&last, req)?;
                let last = &$first;
                $(
                    let $other = $other.scope(&last.unkeyed(), req)?;
                    let last = &$other;
                )+
                Some(last.keys_of(&[&$first, $(&$other),+]))
            }
        }

        /// The scopes of all of them, taken together or not at all.
        #[allow(non_snake_case, reason = "the names of the types stand for the values")]
        impl<Req, $first, $($other),+> ScopeExtractor<Req> for ($first, $($other),+)
        where
            $first: ScopeExtractor<Req>,
            $($other: ScopeExtractor<Req>),+
        {
            fn fixed(&self) -> Option<Scopes> {
                let ($first, $($other),+) = self;
                let scopes = $first.fixed()?;
                $(let scopes = scopes.and($other.fixed()?);)+
                Some(scopes)
            }

            fn extract(&self, req: &Req) -> Scopes {
                let ($first, $($other),+) = self;
                let scopes = $first.extract(req);
                $(let scopes = scopes.and($other.extract(req));)+
                scopes
            }
        }
    )*};
}

tuples! {
    A B;
    A B C;
    A B C D;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quota::Quota;

    const BASE: Scope = Quota::per_second(1.0).scope("base");

    /// Finds what is in the request, or nothing.
    struct Part(usize);

    impl KeyExtractor<Vec<Option<String>>> for Part {
        fn scope(&self, base: &Scope, req: &Vec<Option<String>>) -> Option<Scope> {
            Some(base.key(req[self.0].as_ref()?))
        }
    }

    /// Tells no key, but another cost.
    struct Dear;

    impl<Req> KeyExtractor<Req> for Dear {
        fn scope(&self, base: &Scope, _: &Req) -> Option<Scope> {
            Some(base.clone().cost(5.0))
        }
    }

    fn joined(parts: &[&str]) -> Scope {
        let req = parts.iter().map(|part| Some((*part).to_owned())).collect();
        (Part(0), Part(1)).scope(&BASE, &req).expect("both")
    }

    #[test]
    fn combinations_are_named_by_their_keys() {
        for parts in [["GET", "192.0.2.1"], ["a/b", "~"], ["", ""]] {
            assert!(joined(&parts).same_bucket(&BASE.keys(parts)), "{parts:?}");
            assert!(!joined(&parts).same_bucket(&BASE.key(parts.join("/"))));
        }
        let req = vec![Some("x".to_owned())];
        let scope = (Dear, Part(0)).scope(&BASE.key("old"), &req).expect("both");
        assert!(!scope.same_bucket(&BASE.key("x")));
        assert!(!scope.same_bucket(&BASE.keys(["", "x"])));
        assert_eq!(scope.tokens(), 5.0, "each continues what came before");
    }

    #[test]
    fn one_missing_is_no_key() {
        let req = vec![Some("x".to_owned()), None];
        assert!((Part(0), Part(1)).scope(&BASE, &req).is_none());
        assert!((Part(1), Part(0)).scope(&BASE, &req).is_none());
    }

    proptest! {
        #![proptest_config(crate::verification::bucket_model::seeded())]

        /// Different combinations are different buckets, nested ones too.
        #[test]
        fn combinations_never_meet(
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
}

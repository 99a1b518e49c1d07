//! Tuples: of keys, a bucket for each combination; of limits, all at once.

use std::fmt::{self, Display, Write};

use super::{KeyExtractor, ScopeExtractor};
use crate::scope::{Scope, Scopes};

/// Keys as one, in the escapes of JSON pointers (RFC 6901): `/` between them, `~1` for a `/` and
/// `~0` for a `~` within, so that `("a", "bc")` and `("ab", "c")` differ; `~` for one that has none.
struct Joined<'a, const N: usize>([&'a Scope; N]);

impl<const N: usize> Display for Joined<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, scope) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_char('/')?;
            }
            let Some(key) = scope.key_bytes() else {
                f.write_char('~')?;
                continue;
            };
            for piece in String::from_utf8_lossy(key).split_inclusive(['/', '~']) {
                if let Some(piece) = piece.strip_suffix('/') {
                    f.write_str(piece)?;
                    f.write_str("~1")?;
                } else if let Some(piece) = piece.strip_suffix('~') {
                    f.write_str(piece)?;
                    f.write_str("~0")?;
                } else {
                    f.write_str(piece)?;
                }
            }
        }
        Ok(())
    }
}

macro_rules! tuples {
    ($($first:ident $($other:ident)+, $count:literal;)*) => {$(
        /// One bucket for each combination; none where any of them finds no key. It is secret
        /// where any of them is.
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
                let joined: Joined<'_, $count> = Joined([&$first, $(&$other),+]);
                Some(last.key(joined))
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
    A B, 2;
    A B C, 3;
    A B C D, 4;
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

    fn text(scope: &Scope) -> String {
        String::from_utf8(scope.key_bytes().expect("a key").to_vec()).expect("text")
    }

    fn joined(parts: &[&str]) -> String {
        let req = parts.iter().map(|part| Some((*part).to_owned())).collect();
        text(&(Part(0), Part(1)).scope(&BASE, &req).expect("both"))
    }

    #[test]
    fn combinations_can_be_read() {
        assert_eq!(joined(&["GET", "192.0.2.1"]), "GET/192.0.2.1");
        assert_eq!(joined(&["a/b", "~"]), "a~1b/~0");
        assert_eq!(joined(&["", ""]), "/");
        let req = vec![Some("x".to_owned())];
        let scope = (Dear, Part(0)).scope(&BASE.key("old"), &req).expect("both");
        assert_eq!(text(&scope), "~/x");
        assert_eq!(scope.tokens(), 5.0, "each continues what came before");
    }

    #[test]
    fn one_missing_is_no_key() {
        let req = vec![Some("x".to_owned()), None];
        assert!((Part(0), Part(1)).scope(&BASE, &req).is_none());
        assert!((Part(1), Part(0)).scope(&BASE, &req).is_none());
    }

    proptest! {
        #![proptest_config(crate::bucket::law::seeded())]

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
                let [x, y] = keys.map(|scope| text(&scope.expect("all there")));
                prop_assert_eq!(x == y, one == two, "{} {}", x, y);
            }
        }
    }
}

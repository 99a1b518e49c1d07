//! Tuples: of keys, one bucket for each combination; of limits, all of them together.

use super::{key::KeyExtractor, scope::ScopeExtractor};
use crate::scope::{Scope, Scopes};

#[cfg(test)]
mod tests;

macro_rules! tuples {
    ($($first:ident $($other:ident)+;)*) => {$(
        /// One bucket for each combination of keys, like [`Scope::keys`]. Finds nothing if one of
        /// the keys is missing.
        #[allow(non_snake_case, reason = "values are named like their types")]
        impl<Req, $first, $($other),+> KeyExtractor<Req> for ($first, $($other),+)
        where
            $first: KeyExtractor<Req>,
            $($other: KeyExtractor<Req>),+
        {
            fn scope(&self, base: &Scope, req: &Req) -> Option<Scope> {
                let ($first, $($other),+) = self;
                // Each extractor receives what the one before has made of the base.
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

        /// The scopes of all limits. Tokens are taken from all of them or from none.
        #[allow(non_snake_case, reason = "values are named like their types")]
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

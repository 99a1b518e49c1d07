//! [`PolicyText`]: what the `RateLimit` fields say of a limit in every response.

use std::cell::RefCell;

use http::HeaderValue;

use super::{
    policy::{Left, Policy, policy_name},
    structured::{string, with_parameters},
};
use crate::bucket::BucketParams;

#[cfg(test)]
mod tests;

/// The most texts that a thread keeps. Beyond that, the oldest is made again when it is needed.
const MOST_KEPT: usize = 16;

thread_local! {
    /// For each thread, so that no two cores write to one reference count.
    static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

struct Kept {
    name: Box<str>,
    params: BucketParams,
    text: PolicyText,
}

/// The text of a limit: name, capacity and window.
pub(super) struct PolicyText {
    /// The `RateLimit-Policy` field of this limit alone.
    value: HeaderValue,
    /// The length of the name in it, with the quotes.
    name: usize,
}

impl PolicyText {
    /// Runs `f` with the text of a limit.
    pub(super) fn with<R>(policy: &Policy<'_>, f: impl Fn(&Self) -> R) -> R {
        let find_or_make = |kept: &RefCell<Vec<Kept>>| {
            let kept = &mut *kept.try_borrow_mut().ok()?;
            let params = policy.quota().params();
            let known = kept
                .iter()
                .position(|kept| kept.params == params && *kept.name == *policy.name());
            let index = known.unwrap_or_else(|| {
                if kept.len() >= MOST_KEPT {
                    kept.remove(0);
                }
                kept.push(Kept {
                    name: policy.name().into(),
                    params,
                    text: Self::new(policy),
                });
                kept.len() - 1
            });
            Some(f(&kept[index].text))
        };
        // The thread may be ending.
        let result = KEPT.try_with(find_or_make).ok().flatten();
        result.unwrap_or_else(|| f(&Self::new(policy)))
    }

    fn new(policy: &Policy<'_>) -> Self {
        let name = string(&policy_name(policy.name()));
        let parameters = [(b'q', policy.capacity()), (b'w', policy.window())];
        Self {
            value: value(with_parameters(&name, parameters)),
            name: name.len(),
        }
    }

    /// The member of the `RateLimit-Policy` field.
    pub(super) fn policy(&self) -> &HeaderValue {
        &self.value
    }

    /// The member of the `RateLimit` field.
    pub(super) fn left(&self, left: Left) -> HeaderValue {
        let name = &self.value.as_bytes()[..self.name];
        let parameters = [(b'r', left.tokens), (b't', left.seconds)];
        value(with_parameters(name, parameters))
    }
}

/// The value of a field in printable ASCII.
pub(super) fn value(text: Vec<u8>) -> HeaderValue {
    HeaderValue::try_from(text).expect("printable ASCII")
}

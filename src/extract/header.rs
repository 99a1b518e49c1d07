//! [`header`]: a key from a request's header.

use http::{HeaderName, Request};

use super::KeyExtractor;
use crate::scope::Scope;

/// The value of the header `name`, as a secret: it leaves the process only as a keyed hash.
///
/// Of several lines, all count, so that a second one makes another key rather than hiding. A
/// header that is missing or empty is no key. Anybody can send any header: a limit by one that
/// is not checked elsewhere is a limit per claim.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Quota, Scope, extract::{ScopeExtractor, header}};
///
/// const PER_KEY: Scope = Quota::per_minute(60.0).scope("api-key");
/// let request = http::Request::builder().header("x-api-key", "k-1").body(()).unwrap();
/// assert_eq!(PER_KEY.by(header("x-api-key")).extract(&request).iter().count(), 1);
/// ```
///
/// # Panics
///
/// If `name` is not the name of a header in lower case, such as `x-api-key`.
#[must_use]
pub fn header(name: &'static str) -> Header {
    assert!(
        HeaderName::from_lowercase(name.as_bytes()).is_ok(),
        "\"{name}\" is not the name of a header: write it in lower case, such as \"x-api-key\""
    );
    Header {
        name: HeaderName::from_static(name),
    }
}

/// Finds a key in a header; made by [`header`].
///
/// # Examples
///
/// See [`header`].
#[derive(Clone, Debug)]
pub struct Header {
    name: HeaderName,
}

impl<B> KeyExtractor<Request<B>> for Header {
    fn scope(&self, base: &Scope, req: &Request<B>) -> Option<Scope> {
        let mut values = req
            .headers()
            .get_all(&self.name)
            .iter()
            .filter(|value| !value.is_empty());
        let first = values.next()?;
        let base = base.clone().secret();
        Some(match values.next() {
            None => match first.to_str() {
                Ok(text) => base.key(text),
                Err(_) => base.key(first.as_bytes().escape_ascii()),
            },
            Some(_) => {
                let all: Vec<_> = req
                    .headers()
                    .get_all(&self.name)
                    .iter()
                    .map(|value| value.as_bytes().escape_ascii().to_string())
                    .collect();
                base.key(all.join("\n"))
            }
        })
    }
}

//! [`header`]: a key from a request's header.

use http::{HeaderName, Request};

use super::KeyExtractor;
use crate::scope::Scope;

/// The key of those who send several; no value of a header can be that.
const SEVERAL: &str = "\n";

/// The value of the header `name`, as a secret: it leaves the process only as a keyed hash.
///
/// All requests with several lines that differ have one bucket together, whichever of the lines is
/// believed elsewhere: else a second line, of any content, were a new bucket. A header that is
/// missing or empty is no key.
///
/// Anybody can send any header: a limit by one that is not checked elsewhere is a limit per claim.
/// So is one whose value can be written in several ways, such as `authorization` with `Bearer`
/// or `bearer`; use [`extension`](super::extension) with what was made of it.
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
        Some(if values.any(|value| value != first) {
            base.key(SEVERAL)
        } else if let Ok(text) = first.to_str() {
            base.key(text)
        } else {
            // Behind what no text holds, or the text that is written so were the same key.
            base.key(format_args!("\n{}", first.as_bytes().escape_ascii()))
        })
    }
}

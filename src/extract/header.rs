//! [`header`]: a key from a request's header.

use std::borrow::Cow;

use http::{
    HeaderName, Request,
    header::{AUTHORIZATION, COOKIE, HOST, PROXY_AUTHORIZATION},
};

use super::KeyExtractor;
use crate::scope::Scope;

/// The key of those who send several; no value of a header can be that.
const SEVERAL: &str = "\n";

/// The value of the header `name`.
///
/// A header that is missing or empty is no key.
///
/// # Untrusted headers
///
/// Anybody can send any header. A limit by one that nothing has checked is a limit per *claim*: each
/// invented value has a fresh bucket, and an alternative named by [`or`](super::By::or) is not
/// reached. Use it for headers that a trusted proxy sets on every request. To give each customer a
/// bucket, let the application's authentication check the key and insert what it found into the
/// request's extensions, and read that by [`extension`](super::extension), together with a limit
/// per client: see [`By::or`](super::By::or).
///
/// # Spellings
///
/// Values that HTTP itself takes for the same are one key:
///
/// - Spaces and tabs around a value are not part of it (RFC 9110, 5.5); HTTP/2 leaves them there.
/// - The scheme in `authorization` and `proxy-authorization` has no case, and any number of spaces
///   behind it (RFC 9110, 11.4): the key is written `bearer abc`.
/// - `host` has no case (RFC 9110, 4.2.3), and is the authority of the request's target where that
///   has one, as with HTTP/2 (RFC 9113, 8.3.1). A port stays part of it.
/// - The lines of `cookie` are joined by `; `, because HTTP/2 may split them (RFC 9113, 8.2.3).
///
/// In any other header, requests with several lines that differ have one bucket together, whichever
/// of the lines is believed elsewhere, so that a second line, of any content, is not a new bucket.
///
/// What else the application takes for the same is its own choice, such as the case of a key, the
/// padding of Base64 (also in `authorization: Basic` and in gRPC's `-bin` metadata), and the order of
/// cookies or parameters. Use [`extension`](super::extension) with what it made of the value.
///
/// # Examples
///
/// ```
/// use tower_throttle::{Quota, Scope, extract::{ScopeExtractor, header}};
///
/// const PER_TENANT: Scope = Quota::per_minute(60.0).scope("tenant");
/// const OTHERS: Scope = Quota::per_minute(60.0).scope("no-tenant");
///
/// // The gateway removes this header from what clients send, and writes its own.
/// let by = PER_TENANT.by(header("x-verified-tenant")).or(OTHERS);
/// let request = http::Request::builder().header("x-verified-tenant", "t-1").body(()).unwrap();
/// assert_eq!(by.extract(&request).iter().next().unwrap().name(), "tenant");
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

impl Header {
    fn value<'a, B>(&self, req: &'a Request<B>) -> Option<Cow<'a, [u8]>> {
        if self.name == HOST
            && let Some(authority) = req.uri().authority()
        {
            let host = authority.as_str().rsplit('@').next()?;
            return Some(host.to_ascii_lowercase().into_bytes().into());
        }
        let values = req.headers().get_all(&self.name).iter();
        // Of what is white, a value can hold nothing but SP and HTAB.
        let mut lines = values
            .map(|value| value.as_bytes().trim_ascii())
            .filter(|line| !line.is_empty());
        if self.name == COOKIE {
            let joined = lines.collect::<Vec<_>>().join(&b"; "[..]);
            return (!joined.is_empty()).then(|| joined.into());
        }
        let first = self.canonical(lines.next()?);
        match lines.all(|line| self.canonical(line) == first) {
            true => Some(first),
            false => Some(SEVERAL.as_bytes().into()),
        }
    }

    /// One spelling of those that HTTP takes for the same.
    fn canonical<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        if self.name == HOST {
            return line.to_ascii_lowercase().into();
        }
        if self.name == AUTHORIZATION || self.name == PROXY_AUTHORIZATION {
            // A lone word is a key without a scheme, which may have a case.
            if let Some(end) = line.iter().position(u8::is_ascii_whitespace) {
                let (scheme, rest) = line.split_at(end);
                return [&scheme.to_ascii_lowercase(), rest.trim_ascii_start()]
                    .join(&b' ')
                    .into();
            }
        }
        line.into()
    }
}

impl<B> KeyExtractor<Request<B>> for Header {
    fn scope(&self, base: &Scope, req: &Request<B>) -> Option<Scope> {
        let value = self.value(req)?;
        Some(match str::from_utf8(&value) {
            Ok(text) => base.key(text),
            // Behind what no header holds, or the text that is written so were the same key.
            Err(_) => base.key(format_args!("\n{}", value.escape_ascii())),
        })
    }
}

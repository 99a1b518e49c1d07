//! [`header`]: a header of the request as key.

use std::borrow::Cow;

use http::{
    HeaderName, Request,
    header::{AUTHORIZATION, COOKIE, HOST, PROXY_AUTHORIZATION},
};

use super::key::KeyExtractor;
use crate::scope::Scope;

/// The key of requests with several different lines. No header value contains a line feed.
const SEVERAL: &str = "\n";

/// The value of the header `name`.
///
/// A request in which the header is missing or empty has no key.
///
/// # Untrusted headers
///
/// Any client can send any header. If nothing has verified the value, each invented value has a
/// new bucket, and the alternative of [`or`](super::By::or) is never used. Use `header` for headers
/// that a trusted proxy sets on every request. To limit customers, let the authentication of the
/// application verify the key and insert the identity into the request's extensions, and use
/// [`extension`](super::extension) together with a limit per client: see
/// [`By::or`](super::By::or).
///
/// # Spellings
///
/// Values that are equal in HTTP have one key:
///
/// - Spaces and tabs around a value are removed (RFC 9110, section 5.5). HTTP/2 keeps them.
/// - The scheme in `authorization` and `proxy-authorization` is case-insensitive, and any number
///   of spaces may follow it (RFC 9110, section 11.4): the key is `bearer abc`.
/// - `host` is case-insensitive (RFC 9110, section 4.2.3). If the target of the request has an
///   authority, as in HTTP/2, that is used instead (RFC 9113, section 8.3.1). A port is part of it.
/// - The lines of `cookie` are joined by `; `, because HTTP/2 may split them (RFC 9113, section
///   8.2.3).
///
/// For any other header, all requests with several different lines share one bucket, so that an
/// additional line does not select a new one.
///
/// Other spellings may be equal for the application only, such as the case of a key, the padding
/// of Base64 (also in `authorization: Basic` and in gRPC's `-bin` metadata), and the order of
/// cookies or parameters. Use [`extension`](super::extension) with the value that the application
/// has parsed.
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
/// If `name` is not a valid header name in lower case, such as `x-api-key`.
#[must_use]
pub fn header(name: &'static str) -> Header {
    assert!(
        HeaderName::from_lowercase(name.as_bytes()).is_ok(),
        "\"{name}\" is not a valid header name: use lower case, such as \"x-api-key\""
    );
    Header {
        name: HeaderName::from_static(name),
    }
}

/// Finds the key in a header; made by [`header`].
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
        // The only white space in a value is SP and HTAB.
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

    /// The same text for all spellings that are equal in HTTP.
    fn canonical<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        if self.name == HOST {
            return line.to_ascii_lowercase().into();
        }
        if self.name == AUTHORIZATION || self.name == PROXY_AUTHORIZATION {
            // A single word is a key without a scheme: its case may matter.
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
            Ok(_) => base.key_bytes(&value),
            // The line feed distinguishes it from a value that contains the escaped text.
            Err(_) => base.key(format_args!("\n{}", value.escape_ascii())),
        })
    }
}

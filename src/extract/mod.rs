//! From a request to the scopes it takes from.

mod by;
#[cfg(feature = "http")]
mod header;
#[cfg(any(feature = "axum", feature = "tonic"))]
mod peer;
mod scopes;

#[cfg(feature = "http")]
pub use self::header::{Header, header};
#[cfg(any(feature = "axum", feature = "tonic"))]
pub use self::peer::peer_ip;
pub use self::{
    by::{By, KeyExtractor, Or},
    scopes::ScopeExtractor,
};

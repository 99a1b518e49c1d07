//! Which bucket a request takes from: [`Scope`], one or several of them, and the identity of their
//! buckets.

mod bucket_id;
mod key;
mod live;
#[allow(
    clippy::module_inception,
    reason = "the folder is named after its main type"
)]
mod scope;
mod scopes;

pub(crate) use self::{
    bucket_id::{BucketId, Hashes, Keyspace, Lookup, PREFIX_END},
    scope::Name,
};
pub use self::{
    live::LiveScope,
    scope::Scope,
    scopes::{IntoScopes, Scopes},
};

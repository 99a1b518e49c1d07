//! x
#![allow(missing_docs, dead_code)]
mod bucket;
mod error;
mod quota;
mod scope;
#[cfg(feature = "redis")]
mod redis {
    pub(crate) mod script;
}
pub use self::{error::*, quota::*, scope::*};

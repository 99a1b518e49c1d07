//! The layer, its service, and the future of a response.

mod future;
mod layer;
mod service;
mod shadow;

pub use self::{future::ResponseFuture, layer::RateLimitLayer, service::RateLimit};

//! The tower `Layer`, its `Service` and its response future.

mod config;
mod future;
mod handlers;
mod held_permit;
mod layer;
mod readiness;
mod service;
mod shadow;

pub use self::{future::ResponseFuture, layer::RateLimitLayer, service::RateLimit};

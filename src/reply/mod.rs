//! What clients receive: [`Reply`] turns a rejection into a response or an error, and
//! [`HeaderStyle`] writes rate-limit fields.

#[cfg(feature = "http")]
mod grpc;
#[cfg(feature = "http")]
mod headers;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "http")]
mod policy;
#[cfg(feature = "http")]
mod policy_text;
#[cfg(feature = "http")]
mod problem;
mod rejection;
#[cfg(feature = "http")]
mod status;
#[cfg(feature = "http")]
mod structured;

pub use self::rejection::{Fail, Reply};
#[cfg(feature = "http")]
pub use self::{
    headers::{EXPOSE_HEADERS, HeaderStyle},
    http::{EmptyBody, HttpReply, ProblemJson},
    problem::problem_json,
    status::status,
};

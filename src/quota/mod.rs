//! How many tokens in which time: [`Quota`], its text form, and a quota that changes at run time.

mod live;
mod parse;
#[allow(
    clippy::module_inception,
    reason = "the folder is named after its main type"
)]
mod quota;

pub use self::{live::LiveQuota, parse::ParseQuotaError, quota::Quota};

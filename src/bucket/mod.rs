//! The bucket model: a token bucket with reservations, without clock or I/O.
//!
//! A bucket refills at its rate up to its capacity. A request that finds too few tokens reserves
//! tokens that refill later, and waits until they are due. The model consists of:
//!
//! - **Level.** The tokens in the bucket. Below zero, it is what waiters have reserved, or debt.
//! - **Returned tokens.** While reservations are outstanding, a returned token does not raise the
//!   level. That would let the next reservation be due earlier than the ones made before it, and
//!   two of them could fall into one window. Returned tokens are counted apart instead. A new
//!   request may take from them at once, which delays no waiter. Their number is bounded, so that
//!   they fit into the same window as the largest reservation.
//! - **Gaps.** A cancelled reservation in the middle of the queue is stored as a gap, because
//!   the reservations behind it count on its tokens. A new request may fill the gap, and uses at
//!   once what has refilled of it. That is at most the largest reserved cost; what refills beyond
//!   it is returned. The last reservation of the queue is undone as if it had never been made.
//! - **Pause.** While a bucket is paused, nothing is granted. The level is at most what refills
//!   within the rest of the pause, below zero, so that the bucket is empty when the pause ends and
//!   refills from there. The pause rate is the rate by which the level counts the rest of the
//!   pause: it keeps the length of the pause when the rate of the quota changes.
//!
//! A full bucket equals an absent one, so a full bucket may be removed.
//!
//! Times are in microseconds and levels in tokens, both as `f64`, because `redis/acquire.lua`
//! implements the same model and Lua has no other number type. Both do the same operations in the
//! same order, so that their results agree to the last bit.

mod at_once;
mod debt;
mod gaps;
mod model;
mod params;
mod reservation;
mod take_all;

pub(crate) use self::{
    at_once::{AtOnce, take_at_once},
    debt::Debt,
    model::{Bucket, Taken},
    params::BucketParams,
    reservation::Reservation,
    take_all::{TakenAll, take_all},
};

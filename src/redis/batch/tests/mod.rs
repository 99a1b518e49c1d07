//! The batcher over a scripted Redis, in paused time.

mod in_flight;
mod leases;
mod limits;
mod merging;
mod overload;
mod quotas;
mod replies;
mod support;
mod undelivered;

pub(crate) use self::support::hostile;

//! Several processes with one limit, while their Redis is killed and restarted.

mod child;
mod picture;
mod run;

pub use self::{
    child::child,
    run::{CHILD, Run, run},
};

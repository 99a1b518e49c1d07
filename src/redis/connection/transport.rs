//! The interface between a connection and the driver below it. No types of the driver.

use futures_util::future::BoxFuture;

use crate::{decision::Failure, redis::script::Script};

/// Makes connections.
pub(crate) trait Transport: Send + Sync + 'static {
    /// The address of Redis, for log lines, without user and password.
    fn address(&self) -> String;

    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Session>, Failure>>;

    /// Whether a connection can be made on any runtime, also while another one shuts down.
    fn works_on_any_runtime(&self) -> bool {
        false
    }
}

/// One connection. Several calls may be in flight at once.
pub(crate) trait Session: Send + Sync + 'static {
    /// Runs a script, at most once. The caller limits the time.
    fn run<'a>(
        &'a self,
        script: &'static Script,
        keys: &'a [Vec<u8>],
        arguments: &'a [&'a [u8]],
    ) -> BoxFuture<'a, Result<Vec<u8>, Failure>>;
}

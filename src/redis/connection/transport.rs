//! What a connection is to those above it; no types of the driver.

use futures_util::future::BoxFuture;

use crate::decision::Failure;
use crate::redis::script::Script;

/// Makes connections.
pub(crate) trait Transport: Send + Sync + 'static {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Session>, Failure>>;

    /// Whether a connection can be made on any runtime, also while another one is shut down.
    fn works_on_any_runtime(&self) -> bool {
        false
    }
}

/// One connection. Calls may be in flight side by side.
pub(crate) trait Session: Send + Sync + 'static {
    /// Runs a script, at most once. How long that may take is the caller's business.
    fn run<'a>(
        &'a self,
        script: &'static Script,
        keys: &'a [Vec<u8>],
        arguments: &'a [&'a [u8]],
    ) -> BoxFuture<'a, Result<Vec<u8>, Failure>>;
}

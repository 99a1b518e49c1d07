//! What the fuzz targets in `fuzz/` need of the crate's internals. Compiled with `--cfg fuzzing` only,
//! and not part of the API.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt, ready};
use http::{HeaderMap, StatusCode};

use crate::{
    Limiter, LimiterBuilder,
    decision::{Failure, FailureKind},
    redis::{
        Transport,
        connection::transport::Session,
        script::{HEARTBEAT, Script},
    },
    upstream::Upstream,
};

/// The pause and the levels that a response of an upstream reports.
#[derive(Debug, PartialEq)]
pub struct Advice {
    /// How long the scopes are paused.
    pub pause: Option<Duration>,
    /// The name of each budget, and the tokens that remain of it.
    pub remaining: Vec<(String, f64)>,
    /// The request was rejected without a wait.
    pub is_exhausted: bool,
}

/// Reads a response that is received at `now`, in seconds since 1970.
pub fn advice(upstream: &Upstream, status: StatusCode, headers: &HeaderMap, now: f64) -> Advice {
    let advice = upstream.read(status, headers, now);
    Advice {
        pause: advice.pause,
        remaining: advice.remaining,
        is_exhausted: advice.is_exhausted,
    }
}

/// A pause made longer by `part` of the jitter, from 0 to 1.
pub fn jittered(upstream: &Upstream, pause: Duration, part: f64) -> Duration {
    upstream.jittered(pause, part)
}

/// A call of a script.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The script is the heartbeat, and not the one that acquires.
    pub is_heartbeat: bool,
    /// `KEYS` of the script.
    pub keys: &'a [Vec<u8>],
    /// `ARGV` of the script.
    pub arguments: &'a [&'a [u8]],
}

/// A limiter whose Redis replies what `replies` returns; `None` is a call that fails.
pub fn limiter(
    builder: LimiterBuilder,
    replies: impl Fn(Call<'_>) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> Limiter {
    builder.connected_by(Scripted(Arc::new(replies)), 0)
}

type Replies = dyn Fn(Call<'_>) -> Option<Vec<u8>> + Send + Sync;

#[derive(Clone)]
struct Scripted(Arc<Replies>);

impl Transport for Scripted {
    fn address(&self) -> String {
        "scripted".to_owned()
    }

    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Session>, Failure>> {
        ready(Ok(Box::new(self.clone()) as Box<dyn Session>)).boxed()
    }
}

impl Session for Scripted {
    fn run<'a>(
        &'a self,
        script: &'static Script,
        keys: &'a [Vec<u8>],
        arguments: &'a [&'a [u8]],
    ) -> BoxFuture<'a, Result<Vec<u8>, Failure>> {
        let call = Call {
            is_heartbeat: std::ptr::eq(script, &HEARTBEAT),
            keys,
            arguments,
        };
        let failed = || Failure::new(FailureKind::Disconnected, "a scripted failure");
        ready((self.0)(call).ok_or_else(failed)).boxed()
    }
}

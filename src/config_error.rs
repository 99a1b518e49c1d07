//! [`ConfigError`]: the error of a limiter that cannot be built.

use std::{error::Error, fmt};

/// An invalid configuration of a limiter.
///
/// The message contains the invalid value and how to correct it.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "redis")] {
/// use tower_throttle::Limiter;
///
/// let error = Limiter::redis("localhost:6379").unwrap_err();
/// assert!(error.to_string().contains("redis://"));
/// # }
/// ```
pub struct ConfigError {
    message: String,
}

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigError({:?})", self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ConfigError {}

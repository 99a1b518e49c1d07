//! What a decision may cost, in counters that do not depend on the speed of the machine. All bounds
//! are here; `./scripts/gates` measures everything and prints it beside them.
//!
//! A bound is the measured figure plus 10%, unless it is a promise of the documentation. Lower it
//! with the change that lowers the figure.

/// A counter and its bound.
#[derive(Debug)]
pub struct Gate {
    name: &'static str,
    bound: f64,
}

const fn gate(name: &'static str, bound: f64) -> Gate {
    Gate { name, bound }
}

// Commands that Redis receives, with as many tasks on one bucket.
pub const COMMANDS_64: Gate = gate("commands per token, 64 tasks", 0.0172);
pub const COMMANDS_1024: Gate = gate("commands per token, 1,024 tasks", 0.00108);

// The same over two threads. Their timing makes the figures vary: from 0.018 to 0.021, and from
// 0.0028 to 0.0043. Batches that do not fill cost five times as many.
pub const COMMANDS_64_THREADS: Gate = gate("commands per token, 64 tasks, 2 threads", 0.025);
pub const COMMANDS_1024_THREADS: Gate = gate("commands per token, 1,024 tasks, 2 threads", 0.008);

// Allocations of a request, without those of the caller.
pub const ALLOCATIONS_FIXED: Gate = gate("allocations, memory, fixed scope", 0.0);
pub const ALLOCATIONS_LITERAL: Gate = gate("allocations, memory, literal key", 0.0);
pub const ALLOCATIONS_STRING: Gate = gate("allocations, memory, String key", 1.0);
pub const ALLOCATIONS_REDIS: Gate = gate("allocations, Redis, 64 tasks", 1.72);

// In batches of 128 buckets that exist.
pub const BYTES_SENT: Gate = gate("bytes to Redis per key", 34.4);
pub const BYTES_RECEIVED: Gate = gate("bytes from Redis per key", 9.0);

// Instructions in user space: the kernel's are not counted.
pub const MEMORY_ADMITTED: Gate = gate("instructions, memory, fixed scope", 710.0);
pub const MEMORY_REJECTED: Gate = gate("instructions, memory, rejected", 610.0);
pub const MEMORY_KEYED: Gate = gate("instructions, memory, 1,024 keys", 1_140.0);
pub const CLIENT_128: Gate = gate("instructions, client, 128 keys", 900e3);
pub const CLIENT_128_NEW: Gate = gate("instructions, client, 128 new keys", 1_108e3);
pub const SERVER_128: Gate = gate("instructions, redis-server, 128 keys", 2_027e3);
pub const SERVER_128_NEW: Gate = gate("instructions, redis-server, 128 new keys", 2_142e3);

impl Gate {
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Prints the figure and its bound as a row of a table. Returns an error that says what to do
    /// if the figure exceeds the bound. `profile` says where to look for the cause.
    pub fn check(&self, measured: f64, profile: &str) -> Result<(), String> {
        let Self { name, bound } = *self;
        let (figure, most) = (digits(measured), digits(bound));
        let passes = measured <= bound;
        let verdict = if passes { "" } else { "  EXCEEDED" };
        eprintln!("{name:<42} {figure:>12} {most:>12}{verdict}");
        if passes {
            return Ok(());
        }
        Err(format!(
            "{name}: {figure}, which is more than {most}.\n\
             Find out what has become more expensive: {profile}\n\
             If that cannot be avoided, raise the bound in tests/support/gates.rs, and give the \
             reason in the commit."
        ))
    }

    /// As [`check`](Self::check).
    ///
    /// # Panics
    ///
    /// If the figure exceeds the bound.
    #[track_caller]
    pub fn assert(&self, measured: f64, profile: &str) {
        if let Err(error) = self.check(measured, profile) {
            panic!("{error}");
        }
    }
}

/// Panics with all errors of these checks, if there are any.
#[track_caller]
pub fn assert_all<const N: usize>(checks: [Result<(), String>; N]) {
    let errors: Vec<String> = checks.into_iter().filter_map(Result::err).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n\n"));
}

/// At least three significant digits.
fn digits(number: f64) -> String {
    match number {
        100.0.. => format!("{number:.0}"),
        1.0.. => format!("{number:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{number:.5}"),
    }
}

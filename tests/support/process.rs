//! A child process that cannot outlive the test process.

use std::{
    fs::File,
    io::ErrorKind,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

/// `redis-server`, and a shell that outlives the test process just long enough to kill it.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) redis: Child,
    // Its standard input is a pipe that only this process holds, so it reads the end when the
    // process ends.
    watchdog: Child,
}

impl Process {
    pub(super) fn spawn(mut command: Command, log: File, dir: &Path) -> Result<Self, String> {
        let log_too = log
            .try_clone()
            .map_err(|error| format!("no log file: {error}"))?;
        // A process group of its own, or Ctrl-C would end the watchdog before it has done its work.
        let redis = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .process_group(0)
            .spawn()
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => {
                    "redis-server is not on PATH: run ./scripts/test, which installs it".to_owned()
                }
                _ => format!("redis-server does not start: {error}"),
            })?;
        let watchdog = Command::new("sh")
            .args(["-c", "read -r _; kill -KILL \"$1\"; rm -rf -- \"$2\"", "sh"])
            .arg(redis.id().to_string())
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match watchdog {
            Ok(watchdog) => Ok(Self { redis, watchdog }),
            Err(error) => {
                let mut redis = redis;
                let _ = redis.kill();
                let _ = redis.wait();
                Err(format!("the watchdog does not start: {error}"))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The watchdog ends before redis is reaped: until then no other process can have its pid.
        let _ = self.redis.kill();
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.redis.wait();
    }
}

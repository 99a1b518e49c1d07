//! Processes of this program that run a part of a measurement.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A process that is killed when this value is dropped, also while a panic unwinds.
pub struct Helper {
    child: Child,
    stdout: BufReader<ChildStdout>,
    // Open until this process ends, however it ends. See `exit_with_parent`.
    _stdin: Option<ChildStdin>,
}

impl Helper {
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a helper process does not start");
        Self {
            stdout: BufReader::new(child.stdout.take().expect("stdout is a pipe")),
            _stdin: child.stdin.take(),
            child,
        }
    }

    /// Waits for the next line of its output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let length = self.stdout.read_line(&mut line).expect("stdout is text");
        assert!(length > 0, "a helper process ended early");
        line.trim_end().to_owned()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends this process, a helper, when its parent ends.
pub fn exit_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
}

//! Programs under callgrind, and what it writes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::work::Work;

/// Panics if valgrind is not installed.
pub fn require() {
    let version = Command::new("valgrind").arg("--version").output();
    assert!(
        version.is_ok_and(|version| version.status.success()),
        "valgrind does not start: run ./scripts/gates, which installs it"
    );
}

/// The file to which callgrind writes. It is kept for `callgrind_annotate`.
pub struct Profile(PathBuf);

impl Profile {
    /// Removes the file of a previous run.
    pub fn new(name: &str) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/profiles");
        fs::create_dir_all(&directory).expect("a writable target directory");
        let path = directory.join(format!("{name}.callgrind"));
        let _ = fs::remove_file(&path);
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The command that a program is appended to.
    pub fn valgrind(&self) -> Vec<String> {
        let out = format!("--callgrind-out-file={}", self.0.display());
        ["valgrind", "--quiet", "--tool=callgrind", &out]
            .map(str::to_owned)
            .into()
    }

    /// The instructions of the whole run.
    ///
    /// # Panics
    ///
    /// If the program has not ended by itself.
    pub fn instructions(&self) -> f64 {
        let profile = fs::read_to_string(&self.0).expect("no profile was written");
        let totals = profile
            .lines()
            .find_map(|line| line.strip_prefix("totals: "));
        let totals = totals.and_then(|totals| totals.trim().parse().ok());
        totals.expect("no total in the profile")
    }
}

/// Runs this program under callgrind with so much work.
pub fn run_again(work: Work, units: u32, url: Option<&str>) -> Profile {
    let profile = Profile::new(&format!("{work}-{units}"));
    let words = profile.valgrind();
    let output = Command::new(&words[0])
        .args(&words[1..])
        .arg(std::env::current_exe().expect("the path of this program"))
        .args([work.to_string(), units.to_string()])
        .args(url)
        .stdin(Stdio::null())
        .output()
        .expect("valgrind does not start");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{work}: {stderr}");
    profile
}

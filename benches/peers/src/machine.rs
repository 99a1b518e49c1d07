//! The machine and the versions of a run.

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    /// Names and versions.
    pub versions: Vec<(String, String)>,
}

impl Machine {
    pub fn this() -> Self {
        let cpus = read("/proc/cpuinfo");
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let mut versions = vec![
            ("tower-throttle".to_owned(), commit()),
            ("rustc".to_owned(), of_program("rustc")),
            ("redis-server".to_owned(), of_program("redis-server")),
        ];
        let peers = [
            "redis-cell",
            "redis",
            "tokio",
            "governor",
            "tower_governor",
            "tower-rate-limiter",
            "tower-rate-tier",
            "limitador",
            "axum",
        ];
        versions.extend(peers.map(|name| (name.to_owned(), locked(name))));
        Self {
            cpu: model
                .map_or("unknown CPU", |name| {
                    name.trim_start_matches([' ', '\t', ':'])
                })
                .to_owned(),
            cores: thread::available_parallelism().map_or(1, Into::into),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            versions,
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The version in the lock file.
fn locked(package: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let start = format!("name = \"{package}\"\nversion = \"");
    let version = lock.split(&start).nth(1);
    let version = version.and_then(|rest| rest.split('"').next());
    version.unwrap_or("unknown").to_owned()
}

/// The second or third word of `--version`: `rustc 1.95.0 (…)`, `Redis server v=7.0.15 …`.
fn of_program(name: &str) -> String {
    let text = output(Command::new(name).arg("--version"));
    let version = text.split_whitespace().find_map(|word| {
        let word = word.strip_prefix("v=").unwrap_or(word);
        word.starts_with(|first: char| first.is_ascii_digit())
            .then(|| word.to_owned())
    });
    version.unwrap_or_else(|| "unknown".to_owned())
}

/// The commit of this repository, and whether files were changed since.
fn commit() -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let describe = ["-C", root, "describe", "--always", "--dirty", "--exclude=*"];
    match output(Command::new("git").args(describe)).trim() {
        "" => "unknown".to_owned(),
        commit => format!("commit {commit}"),
    }
}

fn output(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout);
    String::from_utf8_lossy(&output.unwrap_or_default()).into_owned()
}

/// The load average of the last minute, if this is Linux.
pub fn load_average() -> Option<f64> {
    read("/proc/loadavg").split(' ').next()?.parse().ok()
}

/// Nanoseconds that a cache line takes to another core and back: two threads take turns in
/// changing it, and the fastest hundred counts. Rows of one hot scope depend on this time, which
/// changes on a virtual machine. `None` on a machine with one core.
pub fn cache_line_ns() -> Option<f64> {
    const TIME: Duration = Duration::from_millis(6);
    /// If the cores are busy.
    const LONGEST: Duration = Duration::from_millis(100);
    const TURNS: u32 = 100;
    const ENOUGH: u32 = 50;
    const END: u64 = u64::MAX;

    let [one, other] = two_cores()?;
    let line = &AtomicU64::new(0);
    let wait_for = |is_odd: bool| {
        loop {
            let value = line.load(Ordering::Acquire);
            if (value % 2 == 1) == is_odd {
                return value;
            }
            std::hint::spin_loop();
        }
    };
    let answer = || {
        pin(other);
        loop {
            match wait_for(true) {
                END => return,
                turn => line.store(turn + 1, Ordering::Release),
            }
        }
    };
    let measure = || {
        pin(one);
        let started = Instant::now();
        let mut fastest = Duration::MAX;
        for round in 0_u32.. {
            let elapsed = started.elapsed();
            if elapsed > LONGEST || (elapsed > TIME && round > ENOUGH) {
                break;
            }
            let start = Instant::now();
            for _ in 0..TURNS {
                line.store(wait_for(false) + 1, Ordering::Release);
            }
            wait_for(false);
            fastest = fastest.min(start.elapsed());
        }
        line.store(END, Ordering::Release);
        1e9 * fastest.as_secs_f64() / f64::from(TURNS)
    };
    // In threads of their own, because the runtime's are not to be pinned.
    thread::scope(|scope| {
        scope.spawn(answer);
        scope.spawn(measure).join().ok()
    })
}

fn two_cores() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    Some([cores.next()?, cores.next()?])
}

fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).expect("the core is allowed");
}

//! Runs each target for some seconds on stable Rust: the inputs in `seeds/`, then mutations of them.
//!
//! ```sh
//! short                   # all targets
//! short addresses         # one target
//! short addresses FILE..  # one target, with these inputs only
//! ```
//!
//! `THROTTLE_FUZZ_SECONDS` is the time for each target, 3 by default; `THROTTLE_SEED` repeats the
//! mutations of a run. An input that fails is written to `artifacts/`.

use std::{
    env, fs,
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::Instant;
use tower_throttle_fuzz::{TARGETS, Target};

/// Longer inputs are cut.
const LONGEST: usize = 4_096;

/// A panic on any thread and in any task, caught or not.
static PANICKED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::Relaxed);
        print(info);
    }));
    let mut arguments = env::args().skip(1);
    let name = arguments.next();
    let files: Vec<_> = arguments.map(PathBuf::from).collect();
    let targets: Vec<_> = TARGETS
        .into_iter()
        .filter(|(known, _)| name.as_ref().is_none_or(|name| name == known))
        .collect();
    if targets.is_empty() {
        let names = TARGETS.map(|(known, _)| known);
        eprintln!("no target of this name; there are {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    for target in targets {
        let passed = match files.is_empty() {
            true => mutations(target),
            false => inputs(target, &files),
        };
        if !passed {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// The files of a directory in the order of their names.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

/// False if one of the inputs fails.
fn inputs((name, target): Target, files: &[PathBuf]) -> bool {
    files.iter().all(|file| {
        let data = fs::read(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let passed = passes(target, &data);
        if !passed {
            eprintln!("{name} fails with {}", file.display());
        }
        passed
    })
}

fn passes(target: fn(&[u8]), data: &[u8]) -> bool {
    let returned = catch_unwind(AssertUnwindSafe(|| target(data))).is_ok();
    returned && !PANICKED.swap(false, Ordering::Relaxed)
}

/// False if a seed or a mutation of one fails.
fn mutations((name, target): Target) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = files(&root.join("seeds").join(name));
    if !inputs((name, target), &files) {
        return false;
    }
    let seeds: Vec<_> = files
        .iter()
        .map(|file| fs::read(file).expect("a file"))
        .collect();
    let time = Duration::from_secs(number("THROTTLE_FUZZ_SECONDS").unwrap_or(3));
    let seed = number("THROTTLE_SEED").unwrap_or_else(|| fastrand::u64(..));
    let (start, mut runs) = (Instant::now(), 0);
    while start.elapsed() < time {
        // Each input depends on its own number only.
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(runs));
        let data = mutated(&seeds, &mut rng);
        if !passes(target, &data) {
            let directory = root.join("artifacts").join(name);
            let file = directory.join(format!("short-{seed}-{runs}"));
            fs::create_dir_all(&directory).expect("a directory");
            fs::write(&file, &data).expect("a file");
            eprintln!(
                "{name} fails with {} (THROTTLE_SEED={seed})",
                file.display()
            );
            return false;
        }
        runs += 1;
    }
    let count = seeds.len();
    println!("{name}: {count} seeds and {runs} mutations of them passed (THROTTLE_SEED={seed})");
    true
}

/// One of the seeds, changed in one to eight places.
fn mutated(seeds: &[Vec<u8>], rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut data = rng.choice(seeds).cloned().unwrap_or_default();
    for _ in 0..rng.usize(1..=8) {
        let range = part(&data, rng);
        match rng.u8(..8) {
            0 => drop(data.drain(range)),
            1 => data.insert(range.start, rng.u8(..)),
            2 => {
                let copy = data[range].to_vec();
                let at = rng.usize(..=data.len());
                data.splice(at..at, copy);
            }
            // A piece of another seed.
            3 => {
                let other = rng.choice(seeds).map_or(&[][..], Vec::as_slice);
                let piece = &other[part(other, rng)];
                data.splice(range, piece.iter().copied());
            }
            // The punctuation and digits of the formats.
            4 => data.insert(
                range.start,
                *rng.choice(b" ,;:=\"\\[]/._-+%09aZ\t\n").expect("some"),
            ),
            5 => data[range]
                .iter_mut()
                .for_each(|byte| *byte = byte.wrapping_add(1)),
            6 => {
                if let Some(byte) = data[range].first_mut() {
                    *byte ^= 1 << rng.u8(..8);
                }
            }
            _ => {
                if let Some(byte) = data[range].first_mut() {
                    *byte = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff]).expect("some");
                }
            }
        }
    }
    data.truncate(LONGEST);
    data
}

/// A part of `data`, mostly a short one.
fn part(data: &[u8], rng: &mut fastrand::Rng) -> std::ops::Range<usize> {
    let start = rng.usize(..=data.len());
    let longest = if rng.u8(..4) == 0 { data.len() } else { 8 };
    start..data.len().min(start + rng.usize(..=longest))
}

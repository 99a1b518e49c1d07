//! Counts the instructions of a decision with callgrind, and compares them with the bounds in
//! `tests/support/gates.rs`.
//!
//! A program is run twice with different amounts of the same work. The difference is divided by the
//! difference in work, so that starting, connecting and warming up do not count. The program is
//! this one, run again with the arguments of [`work`], or `redis-server`.

mod callgrind;
#[allow(dead_code, reason = "shared with the tests; only a part is used here")]
#[path = "../../../tests/support/gates.rs"]
mod gates;
#[allow(dead_code, reason = "shared with the tests; only a part is used here")]
#[path = "../../../tests/support/process.rs"]
mod process;
#[allow(dead_code, reason = "shared with the tests; only a part is used here")]
#[path = "../../../tests/support/redis_server.rs"]
mod redis_server;
mod work;

use std::process::ExitCode;

use callgrind::Profile;
use gates::Gate;
use redis_server::RedisServer;
use work::Work;

/// The fewer and the more units of work.
const DECISIONS: [u32; 2] = [2_000, 52_000];
const CLIENT_BATCHES: [u32; 2] = [50, 250];
const SERVER_BATCHES: [u32; 2] = [50, 150];

/// A server without work of its own that depends on the time.
const QUIET: [&str; 4] = ["--hz", "1", "--activerehashing", "no"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.is_empty() {
        let (work, units, url) = work::parse(&arguments);
        work.run(units, url);
        return ExitCode::SUCCESS;
    }
    callgrind::require();
    let failures: Vec<String> = [
        decision(&gates::MEMORY_ADMITTED, Work::Admitted),
        decision(&gates::MEMORY_REJECTED, Work::Rejected),
        decision(&gates::MEMORY_KEYED, Work::Keyed),
        client(&gates::CLIENT_128, Work::Batches),
        client(&gates::CLIENT_128_NEW, Work::NewKeys),
        server(&gates::SERVER_128, Work::Batches),
        server(&gates::SERVER_128_NEW, Work::NewKeys),
    ]
    .into_iter()
    .filter_map(Result::err)
    .collect();
    for failure in &failures {
        eprintln!("\n{failure}");
    }
    match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn decision(gate: &Gate, work: Work) -> Result<(), String> {
    per_unit(gate, DECISIONS, |units| {
        callgrind::run_again(work, units, None)
    })
}

/// The client runs under callgrind, the server does not.
fn client(gate: &Gate, work: Work) -> Result<(), String> {
    per_unit(gate, CLIENT_BATCHES, |units| {
        work::block_on(async {
            let server = RedisServer::start_with(&QUIET).await;
            callgrind::run_again(work, units, Some(&server.unix_url()))
        })
    })
}

/// The server runs under callgrind, the client does not.
fn server(gate: &Gate, work: Work) -> Result<(), String> {
    per_unit(gate, SERVER_BATCHES, |units| {
        let profile = Profile::new(&format!("redis-server-{work}-{units}"));
        work::block_on(async {
            let wrapper = profile.valgrind();
            let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
            let mut server = RedisServer::start_under(&wrapper, &QUIET).await;
            work.run_on(units, &server.unix_url()).await;
            // A killed server would not write its profile.
            server.terminate().await;
        });
        profile
    })
}

fn per_unit(
    gate: &Gate,
    [fewer, more]: [u32; 2],
    profile: impl Fn(u32) -> Profile,
) -> Result<(), String> {
    let (short, long) = (profile(fewer), profile(more));
    let instructions = long.instructions() - short.instructions();
    let look = format!(
        "callgrind_annotate {} | head -60, here and before the change.",
        long.path().display()
    );
    gate.check(instructions / f64::from(more - fewer), &look)
}

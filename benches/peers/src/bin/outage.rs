//! Measures how many tokens several processes admit during an outage of Redis, and draws them.

use peers::outage::{self, Run};
use tokio::runtime::Builder;

const USAGE: &str = "usage: scripts/outage-picture [--redraw]
  --redraw  draws docs/outage.svg from docs/outage.json, without another run";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("no runtime");
    match arguments[..] {
        [] => {
            let run = runtime.block_on(outage::run());
            run.save();
            run.draw();
        }
        ["--redraw"] => Run::saved().draw(),
        [outage::CHILD, url] => runtime.block_on(outage::child(url)),
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2);
        }
    }
}

//! Lets the faults of a plan happen.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    plan::{Data, Fault, Kind, Plan},
    server::{Path, Server},
    store::Store,
};

/// Connections that are cut so die without a word and are never mended.
pub(crate) fn bury(server: &Server, process: usize) {
    let mut state = server.lock();
    let line = &mut state.lines[process];
    (line.requests, line.replies) = (Path::Drops, Path::Drops);
}

pub(crate) async fn happen(fault: Fault, plan: Plan, server: Server, start: Instant) {
    let at = start + fault.at;
    let meets = 0..fault.meet;
    match fault.kind {
        Kind::Down(data) => goes_down(&server, data, at, fault.lasts).await,
        Kind::Flaps(period, data) => {
            let mut from = at;
            while from + period <= at + fault.lasts {
                goes_down(&server, data, from, period).await;
                from += 2 * period;
            }
        }
        _ => sleep_until(at).await,
    }
    let each = |f: &dyn Fn(&mut super::server::Line)| {
        let mut state = server.lock();
        state.lines[meets.clone()].iter_mut().for_each(f);
        drop(state);
        server.changed();
    };
    match fault.kind {
        // Death is not among the lines; those who run the processes see to it.
        Kind::Down(_) | Kind::Flaps(..) | Kind::Dies => {}
        Kind::CutOff => {
            each(&|line| line.refuses = true);
            for process in meets.clone() {
                server.lock().cut(process);
            }
            sleep(fault.lasts).await;
            each(&|line| line.refuses = false);
        }
        Kind::Frozen => {
            each(&|line| line.requests = Path::Holds);
            sleep(fault.lasts).await;
            each(&|line| line.requests = Path::Open);
        }
        Kind::HalfOpen => {
            each(&|line| line.requests = Path::Drops);
            sleep(fault.lasts).await;
            each(&|line| line.requests = Path::Open);
        }
        Kind::Deaf => {
            each(&|line| line.replies = Path::Drops);
            sleep(fault.lasts).await;
            each(&|line| line.replies = Path::Open);
        }
        Kind::Slow(delay) => {
            each(&|line| line.delay = (delay, delay + delay / 2));
            sleep(fault.lasts).await;
            each(&|line| line.delay = plan.delay);
        }
        Kind::ReadOnly => {
            server.lock().read_only = true;
            sleep(fault.lasts).await;
            server.lock().read_only = false;
        }
        Kind::Flushed => server.lock().store = Store::default(),
        Kind::Evicted => {
            let mut state = server.lock();
            let which = state.rng.next();
            state.store.evict(which);
        }
        Kind::ClockSet(ms) => server.lock().clock_step += f64::from(ms) * 1e3,
    }
}

async fn goes_down(server: &Server, data: Data, at: Instant, lasts: Duration) {
    let mut kept = None;
    if let Data::Old(age) = data {
        sleep_until(at.checked_sub(age).unwrap_or(at)).await;
        kept = Some(server.lock().store.clone());
    }
    sleep_until(at).await;
    {
        let mut state = server.lock();
        for process in 0..state.lines.len() {
            state.lines[process].refuses = true;
            state.cut(process);
        }
        state.drain();
        match data {
            Data::Kept => {}
            Data::Lost => state.store = Store::default(),
            Data::Old(_) => state.store = kept.unwrap_or_default(),
        }
    }
    sleep(lasts).await;
    let mut state = server.lock();
    for line in &mut state.lines {
        line.refuses = false;
    }
}

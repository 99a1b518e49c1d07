//! Injects the faults of a plan.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    plan::{Data, Fault, Kind, Plan},
    server::{Path, Server},
    store::Store,
};

/// From now on all messages of a process are lost, without an error.
pub(crate) fn drop_silently(server: &Server, process: usize) {
    let mut state = server.lock();
    let link = &mut state.links[process];
    (link.requests, link.replies) = (Path::Drops, Path::Drops);
}

pub(crate) async fn inject(fault: Fault, plan: Plan, server: Server, start: Instant) {
    let at = start + fault.at;
    let meets = 0..fault.affected;
    match fault.kind {
        Kind::Down(data) => restart(&server, data, at, fault.lasts).await,
        Kind::Flaps(period, data) => {
            let mut from = at;
            while from + period <= at + fault.lasts {
                restart(&server, data, from, period).await;
                from += 2 * period;
            }
        }
        _ => sleep_until(at).await,
    }
    let each = |f: &dyn Fn(&mut super::server::Link)| {
        let mut state = server.lock();
        state.links[meets.clone()].iter_mut().for_each(f);
        drop(state);
        server.changed();
    };
    match fault.kind {
        // The first two are done above; `run` stops processes.
        Kind::Down(_) | Kind::Flaps(..) | Kind::ProcessDies => {}
        Kind::Partitioned => {
            each(&|link| link.refuses = true);
            for process in meets.clone() {
                server.lock().cut(process);
            }
            sleep(fault.lasts).await;
            each(&|link| link.refuses = false);
        }
        Kind::Frozen => {
            each(&|link| link.requests = Path::Holds);
            sleep(fault.lasts).await;
            each(&|link| link.requests = Path::Open);
        }
        Kind::HalfOpen => {
            each(&|link| link.requests = Path::Drops);
            sleep(fault.lasts).await;
            each(&|link| link.requests = Path::Open);
        }
        Kind::RepliesLost => {
            each(&|link| link.replies = Path::Drops);
            sleep(fault.lasts).await;
            each(&|link| link.replies = Path::Open);
        }
        Kind::Slow(delay) => {
            each(&|link| link.delay = (delay, delay + delay / 2));
            sleep(fault.lasts).await;
            each(&|link| link.delay = plan.delay);
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

async fn restart(server: &Server, data: Data, at: Instant, lasts: Duration) {
    let mut kept = None;
    if let Data::Old(age) = data {
        sleep_until(at.checked_sub(age).unwrap_or(at)).await;
        kept = Some(server.lock().store.clone());
    }
    sleep_until(at).await;
    {
        let mut state = server.lock();
        for process in 0..state.links.len() {
            state.links[process].refuses = true;
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
    for link in &mut state.links {
        link.refuses = false;
    }
}

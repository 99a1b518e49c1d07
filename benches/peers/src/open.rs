//! The open load: requests arrive at random at a fixed rate, whether or not the ones before are
//! decided. Their latencies include what piles up when a limiter does not keep up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use crate::{
    load::{Random, Scopes, Subject, block_until},
    sample::{Mark, Meter, Sample},
    server::Probe,
};

const RAMP: Duration = Duration::from_millis(40);

/// One round. A thread outside of the runtime starts a task for each request.
pub async fn round<S: Subject>(
    subject: &S,
    scopes: Scopes,
    rate: f64,
    probe: Option<&Probe>,
    slice: Duration,
) -> Sample {
    let stop = Arc::new(AtomicBool::new(false));
    let undecided = Arc::new(AtomicUsize::new(0));
    let (runtime, subject) = (Handle::current(), subject.clone());
    let arrivals = {
        let (stop, undecided) = (stop.clone(), undecided.clone());
        move || {
            let mut random = Random::new(0);
            let mut due = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                due += random.next_arrival(rate);
                block_until(due);
                let (mut subject, undecided) = (subject.clone(), undecided.clone());
                let scope = scopes.next(&mut random);
                undecided.fetch_add(1, Ordering::Relaxed);
                let start = Instant::now();
                runtime.spawn(async move {
                    let admitted = subject.take(scope).await;
                    Meter::with(|meter| {
                        meter.count(1, u64::from(admitted));
                        meter.time(start.elapsed());
                    });
                    undecided.fetch_sub(1, Ordering::Relaxed);
                });
            }
        }
    };
    let arrivals = thread::spawn(arrivals);
    sleep(RAMP).await;
    let mark = Mark::begin(probe).await;
    sleep(slice).await;
    let sample = mark.end(probe).await;
    stop.store(true, Ordering::Relaxed);
    arrivals
        .join()
        .expect("the thread of the arrivals panicked");
    while undecided.load(Ordering::Relaxed) > 0 {
        sleep(Duration::from_millis(1)).await;
    }
    sample
}

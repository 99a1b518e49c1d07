//! Runs a plan in paused time.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    faults,
    load::{Caller, Record, watch},
    plan::{Kind, Plan},
    server::Server,
    store::WrittenBack,
};
use crate::{limiter::Limiter, verification::bucket_model::Rng};

/// How long a task may go on after its limiter is dropped: the longest wait, and what follows.
const LONGEST_TASK: Duration = Duration::from_secs(30);

/// The record of a run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) record: Record,
    pub(crate) written_back: Vec<WrittenBack>,
    /// Write-backs that had been executed before, and so changed nothing.
    pub(crate) repeated_write_backs: usize,
    /// All tokens that were leased.
    pub(crate) leased: f64,
    /// The name of the limiter of each process.
    pub(crate) names: Vec<String>,
    /// When a process died.
    pub(crate) died: BTreeMap<usize, Duration>,
    /// Tasks that have not ended.
    pub(crate) tasks_left: usize,
    /// The most buckets in the memory of one limiter at the end.
    pub(crate) scopes_held: usize,
}

/// Runs the plan.
pub(crate) fn run(plan: &Plan) -> Trace {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let trace = runtime.block_on(simulate(Arc::new(plan.clone())));
    // Tasks that have not ended are dropped here.
    drop(runtime);
    trace
}

struct Process {
    name: String,
    limiter: Option<Limiter>,
    tasks: Vec<JoinHandle<()>>,
}

impl Process {
    fn start(
        plan: &Arc<Plan>,
        process: usize,
        server: &Server,
        record: &Arc<Mutex<Record>>,
        start: Instant,
    ) -> Self {
        let mut rng = Rng::new(plan.seed ^ (0x5eed << 16) ^ process as u64);
        let mut builder = Limiter::builder()
            .lease(plan.lease)
            .reserve_for(plan.reserve_for)
            .lease_ahead(Duration::from_millis(400));
        if plan.hinted {
            builder = builder.replicas(plan.processes as u32);
        }
        let seed = rng.next();
        let limiter = builder.connected_by(server.connector(process), seed);
        let mut tasks = Vec::new();
        let changes = limiter.health_changes();
        tasks.push(tokio::spawn(watch(changes, process, record.clone(), start)));
        if process < plan.busy {
            for (task, role) in plan.roles.iter().enumerate() {
                let caller = Caller {
                    limiter: limiter.clone(),
                    process,
                    task,
                    role: *role,
                    plan: plan.clone(),
                    record: record.clone(),
                    start,
                    rng: Rng::new(rng.next()),
                    retry_after: None,
                };
                tasks.push(tokio::spawn(caller.run()));
            }
        } else {
            let (limiter, scope) = (limiter.clone(), plan.limits[0].scope(0));
            // It connects, and sends heartbeats from then on.
            tasks.push(tokio::spawn(async move {
                let _ = limiter.bucket(&scope).level().await;
            }));
        }
        Self {
            name: format!("{seed:016x}"),
            limiter: Some(limiter),
            tasks,
        }
    }

    /// Cancels its callers, in any state.
    async fn stop(&mut self) {
        for task in mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
    }
}

async fn simulate(plan: Arc<Plan>) -> Trace {
    let tasks_before = Handle::current().metrics().num_alive_tasks();
    let start = Instant::now();
    let server = Server::new(plan.processes, plan.delay, plan.seed);
    let serving = tokio::spawn(server.clone().run());
    let record = Arc::new(Mutex::new(Record::default()));
    let mut faults = Vec::new();
    for fault in &plan.faults {
        let (fault, plan) = (fault.clone(), Plan::clone(&plan));
        faults.push(tokio::spawn(faults::inject(
            fault,
            plan,
            server.clone(),
            start,
        )));
    }
    // A fault at time zero comes before the first connection.
    tokio::task::yield_now().await;
    let mut processes: Vec<_> = (0..plan.processes)
        .map(|process| Process::start(&plan, process, &server, &record, start))
        .collect();
    let mut died = BTreeMap::new();
    for fault in &plan.faults {
        if fault.kind == Kind::ProcessDies && fault.at < plan.length {
            sleep_until(start + fault.at).await;
            let last = processes
                .iter()
                .rposition(|process| process.limiter.is_some());
            let Some(last) = last.filter(|last| *last > 0) else {
                continue;
            };
            faults::drop_silently(&server, last);
            processes[last].stop().await;
            processes[last].limiter = None;
            died.insert(last, start.elapsed());
        }
    }
    sleep_until(start + plan.length).await;
    for task in faults {
        task.abort();
        let _ = task.await;
    }
    for process in &mut processes {
        process.stop().await;
    }
    let held = processes
        .iter()
        .filter_map(|process| process.limiter.as_ref());
    let scopes_held = held.map(Limiter::scopes_held).max().unwrap_or_default();
    let names = processes.iter().map(|process| process.name.clone());
    let names = names.collect();
    drop(processes);
    sleep(LONGEST_TASK).await;
    serving.abort();
    let _ = serving.await;
    let tasks_left = Handle::current().metrics().num_alive_tasks() - tasks_before;
    let record = mem::take(&mut *record.lock().expect("no panic while it is held"));
    let written_back = mem::take(&mut server.lock().written_back);
    let repeated_write_backs = server.lock().repeated_write_backs;
    let leased = server.lock().store.leased;
    Trace {
        record,
        written_back,
        repeated_write_backs,
        leased,
        names,
        died,
        tasks_left,
        scopes_held,
    }
}

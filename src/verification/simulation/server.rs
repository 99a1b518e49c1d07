//! The scripted Redis as it is reached: lines with a delay each way, and what can happen to them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};

use super::store::{Paid, Store, disconnected, read_only, timed_out};
use crate::{
    clock::to_us,
    decision::Failure,
    redis::{Transport, connection::transport::Session, script::Script},
    verification::bucket_model::Rng,
};

/// One attempt to connect and to log in takes no longer.
const CONNECT: Duration = Duration::from_millis(400);

/// The server's clock at the start, in microseconds.
const EPOCH_US: f64 = 1.7e15;

/// What becomes of bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Path {
    Open,
    /// They are lost.
    Drops,
    /// They arrive once the path is open again.
    Holds,
}

/// The way between one process and the server.
pub(crate) struct Line {
    pub(crate) refuses: bool,
    pub(crate) requests: Path,
    pub(crate) replies: Path,
    /// One way, in milliseconds: at least, and at most.
    pub(crate) delay: (u32, u32),
    /// Connections of a lower number are lost.
    connection: watch::Sender<u64>,
    /// In order.
    arrived: Instant,
    returned: Instant,
    held: Vec<Arrival>,
}

struct Arrival {
    process: usize,
    script: &'static Script,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
    reply: oneshot::Sender<(Instant, Result<Vec<u8>, Failure>)>,
}

pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) lines: Vec<Line>,
    pub(crate) read_only: bool,
    /// By how much the server's clock was set, in microseconds.
    pub(crate) clock_step: f64,
    pub(crate) paid: Vec<Paid>,
    pub(crate) paid_again: usize,
    pub(crate) rng: Rng,
    start: Instant,
    queue: BTreeMap<(Instant, u64), Arrival>,
    sent: u64,
}

#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
}

impl Server {
    pub(crate) fn new(processes: usize, delay: (u32, u32), seed: u64) -> Self {
        let start = Instant::now();
        let line = |_| Line {
            refuses: false,
            requests: Path::Open,
            replies: Path::Open,
            delay,
            connection: watch::Sender::new(0),
            arrived: start,
            returned: start,
            held: Vec::new(),
        };
        let state = State {
            store: Store::default(),
            lines: (0..processes).map(line).collect(),
            read_only: false,
            clock_step: 0.0,
            paid: Vec::new(),
            paid_again: 0,
            rng: Rng::new(seed),
            start,
            queue: BTreeMap::new(),
            sent: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            wake: Arc::default(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes calls in the order in which they arrive, for ever.
    pub(crate) async fn run(self) {
        loop {
            let next = {
                let mut state = self.lock();
                state.execute(Instant::now());
                state.queue.first_key_value().map(|((at, _), _)| *at)
            };
            let arrives = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = arrives => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// By which way a process connects.
    pub(crate) fn connector(&self, process: usize) -> Connector {
        Connector {
            server: self.clone(),
            process,
        }
    }

    /// After a change of the lines.
    pub(crate) fn changed(&self) {
        let mut state = self.lock();
        for process in 0..state.lines.len() {
            if state.lines[process].requests == Path::Open {
                for arrival in std::mem::take(&mut state.lines[process].held) {
                    state.queue(arrival);
                }
            }
        }
        drop(state);
        self.wake.notify_one();
    }
}

impl State {
    fn delay(&mut self, process: usize) -> Duration {
        let (least, most) = self.lines[process].delay;
        Duration::from_millis(u64::from(least + self.rng.below(most - least + 1)))
    }

    fn queue(&mut self, arrival: Arrival) {
        let at = Instant::now() + self.delay(arrival.process);
        let line = &mut self.lines[arrival.process];
        line.arrived = line.arrived.max(at);
        self.sent += 1;
        self.queue.insert((line.arrived, self.sent), arrival);
    }

    fn execute(&mut self, now: Instant) {
        while let Some(first) = self.queue.first_entry()
            && first.key().0 <= now
        {
            let arrival = first.remove();
            match self.lines[arrival.process].requests {
                Path::Open => self.serve(arrival, now),
                Path::Holds => self.lines[arrival.process].held.push(arrival),
                Path::Drops => {}
            }
        }
    }

    fn serve(&mut self, arrival: Arrival, now: Instant) {
        let time = EPOCH_US + self.clock_step + to_us(now - self.start).floor();
        let before = self.read_only.then(|| self.store.clone());
        let done = self
            .store
            .run(arrival.script, &arrival.keys, &arrival.arguments, time);
        let result = match before {
            Some(before) if done.wrote => {
                self.store = before;
                Err(read_only())
            }
            _ => {
                self.paid.extend(done.paid);
                self.paid_again += usize::from(done.paid_before);
                Ok(done.reply)
            }
        };
        let delay = self.delay(arrival.process);
        let line = &mut self.lines[arrival.process];
        line.returned = line.returned.max(now + delay);
        if line.replies == Path::Open {
            let _ = arrival.reply.send((line.returned, result));
        }
    }

    /// All connections of a process are lost. What is on its way is executed or not.
    pub(crate) fn cut(&mut self, process: usize) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.retain(|_, arrival| arrival.process != process || self.rng.percent(50));
        self.queue = queue;
        let line = &mut self.lines[process];
        line.held.clear();
        line.connection.send_modify(|number| *number += 1);
    }

    /// What is on its way arrives before the server goes, or never.
    pub(crate) fn drain(&mut self) {
        for arrival in std::mem::take(&mut self.queue).into_values() {
            self.serve(arrival, Instant::now());
        }
    }
}

pub(crate) struct Connector {
    server: Server,
    process: usize,
}

impl Transport for Connector {
    fn address(&self) -> String {
        "simulated".to_owned()
    }

    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Session>, Failure>> {
        async {
            let delay = {
                let mut state = self.server.lock();
                state.delay(self.process) + state.delay(self.process)
            };
            sleep(delay.min(CONNECT)).await;
            if self.server.lock().lines[self.process].refuses {
                return Err(disconnected());
            }
            let connection = {
                let state = self.server.lock();
                let line = &state.lines[self.process];
                let open = line.requests == Path::Open && line.replies == Path::Open;
                open.then(|| line.connection.subscribe())
            };
            match connection {
                Some(connection) if delay <= CONNECT => {
                    let number = *connection.borrow();
                    Ok(Box::new(Wire {
                        server: self.server.clone(),
                        process: self.process,
                        connection,
                        number,
                    }) as Box<dyn Session>)
                }
                _ => {
                    sleep(CONNECT.saturating_sub(delay)).await;
                    Err(timed_out())
                }
            }
        }
        .boxed()
    }
}

/// One connection.
struct Wire {
    server: Server,
    process: usize,
    connection: watch::Receiver<u64>,
    number: u64,
}

impl Session for Wire {
    fn run<'a>(
        &'a self,
        script: &'static Script,
        keys: &'a [Vec<u8>],
        arguments: &'a [&'a [u8]],
    ) -> BoxFuture<'a, Result<Vec<u8>, Failure>> {
        async move {
            let mut connection = self.connection.clone();
            if *connection.borrow() > self.number {
                return Err(disconnected());
            }
            let (reply, answer) = oneshot::channel();
            self.server.lock().queue(Arrival {
                process: self.process,
                script,
                keys: keys.to_vec(),
                arguments: arguments.iter().map(|bytes| bytes.to_vec()).collect(),
                reply,
            });
            self.server.wake.notify_one();
            let answered = async {
                match answer.await {
                    Ok((at, result)) => {
                        sleep_until(at).await;
                        result
                    }
                    // Lost on the way: nobody says so.
                    Err(_) => std::future::pending().await,
                }
            };
            let number = self.number;
            tokio::select! {
                biased;
                _ = connection.wait_for(|now| *now > number) => Err(disconnected()),
                result = answered => result,
            }
        }
        .boxed()
    }
}

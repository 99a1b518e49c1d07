//! The network of the simulated Redis: a link to each process, with a delay each way and faults.

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

use super::store::{Store, WrittenBack, disconnected, read_only, timed_out};
use crate::{
    clock::to_us,
    decision::Failure,
    redis::{Transport, connection::transport::Session, script::Script},
    verification::bucket_model::Rng,
};

/// The longest duration of an attempt to connect and to log in.
const CONNECT: Duration = Duration::from_millis(400);

/// The server's clock at the start, in microseconds.
const EPOCH_US: f64 = 1.7e15;

/// What happens to the messages of one direction of a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Path {
    Open,
    /// They are lost.
    Drops,
    /// They arrive when the path is open again.
    Holds,
}

/// The link between one process and the server.
pub(crate) struct Link {
    pub(crate) refuses: bool,
    pub(crate) requests: Path,
    pub(crate) replies: Path,
    /// One way, in milliseconds: the shortest, and the longest.
    pub(crate) delay: (u32, u32),
    /// Connections with a lower number are lost.
    connection: watch::Sender<u64>,
    /// When the last request arrived, and the last reply: later ones do not overtake it.
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
    pub(crate) links: Vec<Link>,
    pub(crate) read_only: bool,
    /// How far the server's clock was set, in microseconds.
    pub(crate) clock_step: f64,
    pub(crate) written_back: Vec<WrittenBack>,
    pub(crate) repeated_write_backs: usize,
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
        let link = |_| Link {
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
            links: (0..processes).map(link).collect(),
            read_only: false,
            clock_step: 0.0,
            written_back: Vec::new(),
            repeated_write_backs: 0,
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

    /// Executes calls in the order in which they arrive, forever.
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

    /// The transport of one process.
    pub(crate) fn connector(&self, process: usize) -> Connector {
        Connector {
            server: self.clone(),
            process,
        }
    }

    /// Called after a change of the links.
    pub(crate) fn changed(&self) {
        let mut state = self.lock();
        for process in 0..state.links.len() {
            if state.links[process].requests == Path::Open {
                for arrival in std::mem::take(&mut state.links[process].held) {
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
        let (least, most) = self.links[process].delay;
        Duration::from_millis(u64::from(least + self.rng.below(most - least + 1)))
    }

    fn queue(&mut self, arrival: Arrival) {
        let at = Instant::now() + self.delay(arrival.process);
        let link = &mut self.links[arrival.process];
        link.arrived = link.arrived.max(at);
        self.sent += 1;
        self.queue.insert((link.arrived, self.sent), arrival);
    }

    fn execute(&mut self, now: Instant) {
        while let Some(first) = self.queue.first_entry()
            && first.key().0 <= now
        {
            let arrival = first.remove();
            match self.links[arrival.process].requests {
                Path::Open => self.serve(arrival, now),
                Path::Holds => self.links[arrival.process].held.push(arrival),
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
                self.written_back.extend(done.written_back);
                self.repeated_write_backs += usize::from(done.repeats_write_back);
                Ok(done.reply)
            }
        };
        let delay = self.delay(arrival.process);
        let link = &mut self.links[arrival.process];
        link.returned = link.returned.max(now + delay);
        if link.replies == Path::Open {
            let _ = arrival.reply.send((link.returned, result));
        }
    }

    /// Drops all connections of a process. Each request in flight is executed or not, at random.
    pub(crate) fn cut(&mut self, process: usize) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.retain(|_, arrival| arrival.process != process || self.rng.percent(50));
        self.queue = queue;
        let link = &mut self.links[process];
        link.held.clear();
        link.connection.send_modify(|number| *number += 1);
    }

    /// Before the server stops: executes the requests that are in flight.
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
            if self.server.lock().links[self.process].refuses {
                return Err(disconnected());
            }
            let connection = {
                let state = self.server.lock();
                let link = &state.links[self.process];
                let open = link.requests == Path::Open && link.replies == Path::Open;
                open.then(|| link.connection.subscribe())
            };
            match connection {
                Some(connection) if delay <= CONNECT => {
                    let number = *connection.borrow();
                    Ok(Box::new(SimulatedSession {
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
struct SimulatedSession {
    server: Server,
    process: usize,
    connection: watch::Receiver<u64>,
    number: u64,
}

impl Session for SimulatedSession {
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
                    // The request or the reply was lost, without an error.
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

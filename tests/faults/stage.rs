//! Four processes under load on one Redis, and operations that disturb it.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    thread::JoinHandle,
    time::Duration,
};

use super::{
    child::{CAPACITY, Order, lease},
    record::{Record, now_us},
    support::{DECIDES, Proxy, RedisServer, SENDS_HEARTBEATS},
};

pub(crate) const PROCESSES: usize = 4;

/// Kills its process when it is dropped, also while a panic unwinds.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    records: Option<JoinHandle<Vec<Record>>>,
}

impl Process {
    /// Returns once the process is ready.
    fn start(order: &Order) -> Self {
        let this = std::env::current_exe().expect("a path");
        let (name, value) = order.to_env();
        let mut child = Command::new(this)
            .env(name, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let first = lines.next().expect("a line").expect("a pipe");
        assert_eq!(first, "ready");
        // A pipe that is not read would block the process.
        let records = std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .filter_map(|line| line.parse().ok())
                .collect()
        });
        Self {
            child,
            stdin,
            records: Some(records),
        }
    }

    fn kill9(&mut self) {
        self.child.kill().expect("a child of this process");
    }

    fn finish(mut self) -> Vec<Record> {
        self.stdin = None;
        let records = self.records.take().expect("finished once");
        let records = records.join().expect("a reader that does not panic");
        let _ = self.child.wait();
        records
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How the processes of a row are started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// Arguments of the server.
    pub(crate) args: &'static [&'static str],
    /// Each process connects through a proxy of its own.
    pub(crate) proxied: bool,
    /// The server's clock can be set.
    pub(crate) clock: bool,
    /// The server is down at first.
    pub(crate) absent: bool,
    pub(crate) policy: Option<tower_throttle::Fallback>,
    /// `user:password@` of the processes.
    pub(crate) user: &'static str,
    /// In seconds, if it is not the default.
    pub(crate) reserve_for: Option<u64>,
}

pub(crate) const PLAIN: Setup = Setup {
    args: &[],
    proxied: false,
    clock: false,
    absent: false,
    policy: None,
    user: "",
    reserve_for: None,
};

pub(crate) const PROXIED: Setup = Setup {
    proxied: true,
    ..PLAIN
};

/// A fault: when it began, and when its cause ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) from: i64,
    pub(crate) to: i64,
}

pub(crate) struct Stage {
    pub(crate) server: RedisServer,
    pub(crate) proxies: Vec<Proxy>,
    processes: Vec<Process>,
    marks: Vec<Mark>,
    killed: Vec<usize>,
    allowed: f64,
}

/// The records of all processes.
pub(crate) struct Trace {
    /// The records of each process, in the order in which they ended.
    pub(crate) records: Vec<Vec<Record>>,
    pub(crate) marks: Vec<Mark>,
    pub(crate) to: i64,
    pub(crate) killed: Vec<usize>,
    /// Tokens that the faults allow in addition to those that the row allows.
    pub(crate) allowed: f64,
}

impl Stage {
    pub(crate) async fn new(setup: &Setup) -> Self {
        let mut server = match setup.clock {
            true => RedisServer::start_with_clock(setup.args).await,
            false => RedisServer::start_with(setup.args).await,
        };
        if !setup.user.is_empty() {
            let user = &["on", ">secret", "~throttle:v1|*"][..];
            let rules = [user, DECIDES, SENDS_HEARTBEATS].concat();
            server.acl_set_user("throttle", &rules).await;
        }
        let mut proxies = Vec::new();
        if setup.proxied {
            for _ in 0..PROCESSES {
                proxies.push(Proxy::start(server.port()).await);
            }
        }
        if setup.absent {
            server.kill9();
        }
        let urls = (0..PROCESSES).map(|index| match proxies.get(index) {
            Some(proxy) => proxy.url(),
            None => server.url(),
        });
        let orders: Vec<_> = urls
            .map(|url| Order {
                url: url.replace("redis://", &format!("redis://{}", setup.user)),
                replicas: PROCESSES as u32,
                policy: setup.policy,
                reserve_for: setup.reserve_for,
            })
            .collect();
        let processes = tokio::task::spawn_blocking(move || {
            let started: Vec<_> = orders.iter().map(Process::start).collect();
            started
        });
        Self {
            server,
            proxies,
            processes: processes.await.expect("no panic"),
            marks: Vec::new(),
            killed: Vec::new(),
            allowed: PROCESSES as f64 * lease().min(CAPACITY / 8.0).floor(),
        }
    }

    pub(crate) async fn sleep(&self, seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    /// A fault begins.
    pub(crate) fn begins(&mut self) {
        let now = now_us();
        self.marks.push(Mark { from: now, to: now });
    }

    /// The cause of the fault ends.
    pub(crate) fn ends(&mut self) {
        if let Some(mark) = self.marks.last_mut() {
            mark.to = now_us();
        }
    }

    /// Allows `tokens` more in the worst window.
    pub(crate) fn allow(&mut self, tokens: f64) {
        self.allowed += tokens;
    }

    pub(crate) fn kill_process(&mut self, index: usize) {
        self.processes[index].kill9();
        self.killed.push(index);
    }

    pub(crate) fn go(&mut self) {
        for process in &mut self.processes {
            let stdin = process.stdin.as_mut().expect("not finished");
            stdin.write_all(b"go\n").expect("a running child");
        }
    }

    pub(crate) async fn finish(self) -> Trace {
        let Self {
            server,
            proxies,
            mut processes,
            marks,
            killed,
            allowed,
        } = self;
        let to = now_us();
        let records = tokio::task::spawn_blocking(move || {
            for process in &mut processes {
                process.stdin = None;
            }
            let finished: Vec<_> = processes.into_iter().map(Process::finish).collect();
            finished
        });
        let records = records.await.expect("no panic");
        drop((server, proxies));
        Trace {
            records,
            marks,
            to,
            killed,
            allowed,
        }
    }
}

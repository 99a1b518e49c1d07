//! A `redis-server` process that ends with the test that started it.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client, aio::MultiplexedConnection};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UnixStream},
    time::{Instant, sleep, timeout},
};

use super::process::Process;

pub(super) const START_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const POLL: Duration = Duration::from_millis(5);

/// A private `redis-server` on a free loopback port and on a unix socket in its own directory.
///
/// It stores no data unless its arguments enable that. Dropping it kills the process, also while a
/// panic unwinds, and removes the directory. If the test process itself is killed, a watchdog does
/// both.
#[must_use = "dropping the server kills it"]
#[derive(Debug)]
pub struct RedisServer {
    args: Vec<String>,
    /// The program that runs the server, and its arguments; empty if none does.
    wrapper: Vec<String>,
    /// Whether its clock can be set.
    settable: bool,
    port: u16,
    process: Option<Process>,
    // Fields drop in this order: the process ends before its directory is removed.
    dir: TempDir,
    reservation: Option<TcpSocket>,
}

impl RedisServer {
    /// Starts a server without persistence, and waits until it responds.
    ///
    /// # Panics
    ///
    /// If `redis-server` is not installed, or does not start; the message shows its log.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with more arguments, for example `&["--appendonly", "yes"]`. They override
    /// the defaults.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(args: &[&str]) -> Self {
        Self::start_as(args, &[], false).await
    }

    /// Starts a server under another program, for example `&["valgrind", "--tool=callgrind"]`.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn start_under(wrapper: &[&str], args: &[&str]) -> Self {
        Self::start_as(args, wrapper, false).await
    }

    /// Starts a server whose clock can be set with [`set_clock`](Self::set_clock).
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start), and if there is no C compiler, or this is not Linux.
    pub async fn start_with_clock(args: &[&str]) -> Self {
        Self::start_as(args, &[], true).await
    }

    async fn start_as(args: &[&str], wrapper: &[&str], settable: bool) -> Self {
        let mut failure = String::new();
        for _ in 0..5 {
            let (port, reservation) = reserve_port().expect("no free loopback port");
            let mut server = Self {
                args: args.iter().map(|arg| arg.to_string()).collect(),
                wrapper: wrapper.iter().map(|arg| arg.to_string()).collect(),
                settable,
                port,
                process: None,
                dir: TempDir::with_prefix("redis-").expect("no temporary directory"),
                reservation,
            };
            if settable {
                server.build_clock();
                server.set_clock(0);
            }
            match server.launch().await {
                Ok(()) => return server,
                Err(error) => failure = error,
            }
            if !failure.contains("Address already in use") {
                break;
            }
        }
        panic!("{failure}");
    }

    /// The TCP port, which is the same after restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:PORT/`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// `unix:///…/redis.sock`.
    pub fn unix_url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The directory of the socket, the log and the saved data.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The process id of `redis-server` itself.
    ///
    /// # Panics
    ///
    /// If the server is down.
    pub fn pid(&self) -> u32 {
        self.running().redis.id()
    }

    /// The server's log, over all its restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("redis.log")).unwrap_or_else(|error| error.to_string())
    }

    /// A new connection over TCP, with a timeout (10 s) for a busy machine.
    ///
    /// # Panics
    ///
    /// If the server does not accept it.
    pub async fn connection(&self) -> MultiplexedConnection {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(10)))
            .set_response_timeout(Some(Duration::from_secs(10)));
        Client::open(self.url())
            .expect("a URL")
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .unwrap_or_else(|error| panic!("no connection to redis-server: {error}"))
    }

    /// The number of times `command` (as `INFO commandstats` spells it: `evalsha`, `script|load`)
    /// ran since the start or the last [`reset_stats`](Self::reset_stats), failed runs included.
    pub async fn calls(&self, command: &str) -> u64 {
        let stats: String = redis::cmd("INFO")
            .arg("commandstats")
            .query_async(&mut self.connection().await)
            .await
            .expect("INFO commandstats failed");
        let prefix = format!("cmdstat_{}:calls=", command.to_ascii_lowercase());
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        line.and_then(|rest| rest.split(',').next())
            .map_or(0, |calls| {
                calls
                    .parse()
                    .unwrap_or_else(|_| panic!("unreadable call count {calls:?}"))
            })
    }

    /// Sets all call counts to zero.
    pub async fn reset_stats(&self) {
        redis::cmd("CONFIG")
            .arg("RESETSTAT")
            .exec_async(&mut self.connection().await)
            .await
            .expect("CONFIG RESETSTAT failed");
    }

    /// Kills the server (SIGKILL) and returns when it has ended. Its port then refuses connections.
    /// Does nothing if the server is down.
    pub fn kill9(&mut self) {
        self.process = None;
    }

    /// Requests the server to stop (SIGTERM, so that it saves if it is configured to) and returns
    /// when it has ended.
    ///
    /// # Panics
    ///
    /// If it is down, or does not stop within 30 s.
    pub async fn terminate(&mut self) {
        self.signal("TERM");
        self.signal("CONT");
        let deadline = Instant::now() + START_TIMEOUT;
        while self.exited().is_none() {
            assert!(
                Instant::now() < deadline,
                "SIGTERM was ignored:\n{}",
                self.log()
            );
            sleep(POLL).await;
        }
        self.process = None;
    }

    /// Stops the process (SIGSTOP) without closing anything: the kernel still accepts connections,
    /// and they get no reply. [`thaw`](Self::thaw) or dropping it ends that.
    ///
    /// # Panics
    ///
    /// If the server is down.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Resumes a frozen process (SIGCONT), which then executes what its sockets have received.
    ///
    /// # Panics
    ///
    /// If the server is down.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Sets the server's clock to `ahead_s` seconds ahead of the machine's; below zero: behind it.
    ///
    /// # Panics
    ///
    /// If it was not started with [`start_with_clock`](Self::start_with_clock).
    pub fn set_clock(&self, ahead_s: i64) {
        assert!(self.settable, "started without a settable clock");
        // Overwritten in place with one write: the server maps this file.
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.dir().join("clock"))
            .and_then(|mut file| file.write_all(&ahead_s.to_ne_bytes()))
            .expect("a writable directory");
    }

    fn build_clock(&self) {
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(self.dir().join("clock.so"))
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/support/clock.c"
            ))
            .output()
            .expect("no C compiler: run ./scripts/test, which installs one");
        let stderr = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{stderr}");
    }

    /// Starts the server again on the same port and directory, killing it first if it runs, and
    /// waits until it responds and has loaded its data.
    ///
    /// # Panics
    ///
    /// If it does not start; the message shows its log.
    pub async fn restart(&mut self) {
        self.restart_with(&[]).await;
    }

    /// As [`restart`](Self::restart), with more arguments for this one start.
    ///
    /// # Panics
    ///
    /// As [`restart`](Self::restart).
    pub async fn restart_with(&mut self, args: &[&str]) {
        self.kill9();
        if let Err(failure) = self.launch_until(Answer::Other, args).await {
            panic!("{failure}");
        }
    }

    /// As [`restart`](Self::restart), with more arguments for this one start, but returns as soon
    /// as it responds with LOADING.
    pub(super) async fn restart_until_loading(&mut self, args: &[&str]) {
        self.kill9();
        if let Err(failure) = self.launch_until(Answer::Loading, args).await {
            panic!("{failure}");
        }
    }

    /// Waits until the server has loaded its data.
    ///
    /// # Panics
    ///
    /// If that takes longer than 30 s.
    pub async fn until_loaded(&mut self) {
        if let Err(failure) = self.until(Answer::Other).await {
            panic!("{failure}");
        }
    }

    async fn launch(&mut self) -> Result<(), String> {
        self.launch_until(Answer::Other, &[]).await
    }

    async fn launch_until(&mut self, expected: Answer, args: &[&str]) -> Result<(), String> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir().join("redis.log"));
        let log = log.map_err(|error| format!("no log file: {error}"))?;
        let mut command = self.server_command();
        command.args(args);
        self.process = Some(Process::spawn(command, log, self.dir())?);
        self.until(expected).await
    }

    async fn until(&mut self, expected: Answer) -> Result<(), String> {
        let deadline = Instant::now() + START_TIMEOUT;
        let socket = self.socket();
        while answer(&socket).await != Some(expected) {
            if let Some(status) = self.exited() {
                self.process = None;
                return Err(format!("redis-server ended ({status}):\n{}", self.log()));
            }
            if Instant::now() > deadline {
                return Err(format!("no answer from redis-server:\n{}", self.log()));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    fn server_command(&self) -> Command {
        let mut words = self
            .wrapper
            .iter()
            .map(String::as_str)
            .chain(["redis-server"]);
        let mut command = Command::new(words.next().expect("not empty"));
        command
            .args(words)
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--daemonize", "no", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(self.dir())
            .arg("--unixsocket")
            .arg(self.socket())
            .args(&self.args);
        if self.settable {
            command
                .env("LD_PRELOAD", self.dir().join("clock.so"))
                .env("CLOCK_OFFSET_FILE", self.dir().join("clock"));
        }
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir().join("redis.sock")
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("redis-server is down")
    }

    fn exited(&mut self) -> Option<String> {
        let redis = &mut self.process.as_mut()?.redis;
        redis
            .try_wait()
            .expect("a child of this process")
            .map(|status| status.to_string())
    }

    fn signal(&self, name: &str) {
        // The shell's builtin `kill`: a minimal container has no `kill` program.
        let status = Command::new("sh")
            .args([
                "-c",
                "kill -\"$1\" \"$2\"",
                "sh",
                name,
                &self.pid().to_string(),
            ])
            .status()
            .expect("no sh");
        assert!(status.success(), "SIG{name} was not sent: {status}");
    }
}

/// A free port, and on Linux a socket that is bound to it but never listens. The socket refuses
/// connections while the server is down, lets the server bind (both reuse the address), and keeps
/// the kernel from assigning the port to another test, or to a reconnecting client as the local end
/// of its own connection.
fn reserve_port() -> io::Result<(u16, Option<TcpSocket>)> {
    let socket = TcpSocket::new_v4()?;
    if cfg!(target_os = "linux") {
        socket.set_reuseaddr(true)?;
    }
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let port = socket.local_addr()?.port();
    Ok((port, cfg!(target_os = "linux").then_some(socket)))
}

/// The response of a server to PING.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Loading,
    /// PONG, or an error (no password, no right): the server has started.
    Other,
}

/// `None` while the server does not respond. Uses the unix socket, as another process may own the
/// port; that socket is opened only after the port.
async fn answer(socket: &Path) -> Option<Answer> {
    let response = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut reply = [0; 5];
        stream.read_exact(&mut reply).await?;
        io::Result::Ok(match &reply {
            b"-LOAD" => Answer::Loading,
            _ => Answer::Other,
        })
    };
    timeout(Duration::from_secs(1), response).await.ok()?.ok()
}

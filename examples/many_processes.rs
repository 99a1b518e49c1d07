//! Shows that four processes keep one limit. The program starts itself four times on one Redis. Each
//! process takes as many tokens as it can for five seconds. The parent compares their sum with what
//! the limit allows; the exit code is 0 if the limit was kept.
//!
//! Run it with a `redis-server` that it starts itself, or on another Redis:
//!
//! ```text
//! cargo run --example many_processes
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example many_processes
//! ```

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    process::{self, ExitCode, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower_throttle::{Health, Limiter, Quota, Scope};

const SHARED: Scope = Quota::per_second(100.0).burst(20.0).scope("many-processes");
const PROCESSES: u32 = 4;
const CALLERS: usize = 8;
const RUN: Duration = Duration::from_secs(5);
/// The time limit of each step that should take no time.
const PATIENCE: Duration = Duration::from_secs(10);

/// The environment variable with the key of the shared bucket, set for child processes.
const BUCKET: &str = "MANY_PROCESSES_BUCKET";

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<ExitCode, Error> {
    match std::env::var(BUCKET) {
        Ok(bucket) => child(&bucket).await,
        Err(_) => parent().await,
    }
}

/// Starts the children, gives the start signal, and adds up their counts.
async fn parent() -> Result<ExitCode, Error> {
    let (url, server) = match std::env::var("REDIS_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let (url, server) = start_redis().await?;
            (url, Some(server))
        }
    };

    let mut children = Vec::new();
    for _ in 0..PROCESSES {
        children.push(Process::start(&url)?);
    }
    for child in &mut children {
        child.expect("ready", PATIENCE).await?;
    }

    // Measured from before the first child can take a token until after the last one has taken all.
    let started = Instant::now();
    for child in &mut children {
        child.stdin.write_all(b"go\n").await?;
    }
    let mut counts = Vec::new();
    for child in &mut children {
        counts.push(child.counts().await?);
    }
    let seconds = started.elapsed().as_secs_f64();

    for child in &mut children {
        child.child.wait().await?;
    }
    if let Some(mut server) = server {
        server.kill().await?;
    }

    let admitted: u64 = counts.iter().map(|&(admitted, _)| admitted).sum();
    let degraded: u64 = counts.iter().map(|&(_, degraded)| degraded).sum();
    let allowed = SHARED.quota().capacity() + SHARED.quota().rate() * seconds;

    println!(
        "{:<12}{:>10}{:>8}{:>15}",
        "process", "admitted", "part", "degraded"
    );
    for (child, (admitted_here, degraded)) in children.iter().zip(&counts) {
        let part = 100.0 * *admitted_here as f64 / admitted.max(1) as f64;
        println!(
            "{:<12}{admitted_here:>10}{part:>7.1}%{degraded:>15}",
            child.id
        );
    }
    println!("{:<12}{admitted:>10}{:>8}{degraded:>15}", "together", "");
    println!(
        "\nallowed in {seconds:.2} s: {allowed:.1}; admitted / allowed: {:.3}",
        admitted as f64 / allowed
    );
    Ok(if admitted as f64 <= allowed {
        ExitCode::SUCCESS
    } else {
        println!("more was admitted than the limit allows");
        if degraded > 0 {
            println!("Redis was unavailable for some time, and each process used its local share");
        }
        ExitCode::FAILURE
    })
}

/// Takes as many tokens as possible for a fixed time, with several callers that wait.
async fn child(bucket: &str) -> Result<ExitCode, Error> {
    let limiter = Limiter::builder()
        .redis(std::env::var("REDIS_URL")?)
        .replicas(PROCESSES)
        .build()?;
    let scope = SHARED.key(bucket);

    // The first use connects. The example needs Redis.
    let _ = limiter.bucket(&scope).level().await;
    if let Health::Degraded { reason, .. } = limiter.health() {
        println!("Redis is unavailable: {reason}");
        return Ok(ExitCode::FAILURE);
    }
    println!("ready");
    let mut go = String::new();
    BufReader::new(tokio::io::stdin())
        .read_line(&mut go)
        .await?;
    if go.is_empty() {
        return Err("the parent has ended".into());
    }

    let end = Instant::now() + RUN;
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (limiter, scope) = (limiter.clone(), scope.clone());
        callers.spawn(async move {
            let (mut admitted, mut degraded) = (0, 0);
            // A request that would wait beyond the end is rejected at once.
            while let Ok(permit) = limiter
                .acquire(&scope, end.saturating_duration_since(Instant::now()))
                .await
            {
                admitted += 1;
                degraded += u64::from(permit.is_degraded());
            }
            (admitted, degraded)
        });
    }
    let counts = callers.join_all().await;
    let admitted: u64 = counts.iter().map(|&(admitted, _)| admitted).sum();
    let degraded: u64 = counts.iter().map(|&(_, degraded)| degraded).sum();
    println!("{admitted} {degraded}");
    limiter.deregister().await;
    Ok(ExitCode::SUCCESS)
}

/// A child process. It is killed when this value is dropped.
struct Process {
    id: u32,
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(url: &str) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .env("REDIS_URL", url)
            .env(BUCKET, process::id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self {
            id: child.id().ok_or("a process ended at once")?,
            stdin: child.stdin.take().ok_or("no standard input")?,
            stdout: BufReader::new(child.stdout.take().ok_or("no standard output")?).lines(),
            child,
        })
    }

    async fn line(&mut self, patience: Duration) -> Result<String, Error> {
        let line = timeout(patience, self.stdout.next_line()).await??;
        Ok(line.ok_or_else(|| format!("process {} ended early", self.id))?)
    }

    async fn expect(&mut self, word: &str, patience: Duration) -> Result<(), Error> {
        let line = self.line(patience).await?;
        if line == word {
            Ok(())
        } else {
            Err(format!("process {}: {line}", self.id).into())
        }
    }

    async fn counts(&mut self) -> Result<(u64, u64), Error> {
        let line = self.line(RUN + PATIENCE).await?;
        let (admitted, degraded) = line
            .split_once(' ')
            .ok_or_else(|| format!("process {}: {line}", self.id))?;
        Ok((admitted.parse()?, degraded.parse()?))
    }
}

/// Starts a Redis on a free port. It writes nothing to disk and is killed when it is dropped.
async fn start_redis() -> Result<(String, Child), Error> {
    // The port is free again when the listener is dropped, at the end of this statement.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await?
        .local_addr()?
        .port();
    let mut server = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no"])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                "redis-server is not on PATH: install it, or set REDIS_URL".to_owned()
            }
            _ => format!("redis-server could not be started: {error}"),
        })?;

    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).await.is_err() {
        if let Some(status) = server.try_wait()? {
            return Err(format!("redis-server ended: {status}").into());
        }
        if Instant::now() > deadline {
            return Err("redis-server does not accept connections".into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok((format!("redis://{address}"), server))
}

//! A TCP proxy that disturbs connections on demand.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{broadcast, mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};

/// What the proxy does to bytes and connections from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forward everything at once.
    Pass,
    /// Forward everything this much later, in each direction.
    Delay(Duration),
    /// Accept and forward nothing. Connections stay open, and their bytes are kept until another
    /// mode is set.
    Stall,
    /// Forward requests, drop replies. Dropped replies are lost, so that a surviving connection is
    /// out of step: call [`cut`](Proxy::cut) before another mode is set.
    DropReplies,
    /// Forward until a request contains these bytes. From then on,
    /// [`DropReplies`](Self::DropReplies).
    DropRepliesFrom(&'static [u8]),
    /// Close new connections at once. Existing ones continue.
    Refuse,
    /// Forward in pieces of at most this many bytes, each in a segment of its own.
    Split(usize),
    /// Forward at most this many bytes per second, in each direction of each connection.
    Slow(u32),
    /// Forward the first bytes of the next reply, close its connection, and return to `Pass`.
    CutMidReply,
}

/// A proxy on a port of its own in front of a server on loopback.
///
/// Dropping it closes its port and its connections as soon as the runtime runs its tasks.
#[must_use = "dropping the proxy closes it"]
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
    cuts: broadcast::Sender<Cut>,
    upstream_port: Arc<AtomicU16>,
    accepted: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to `127.0.0.1:upstream_port`, in [`Mode::Pass`].
    ///
    /// # Panics
    ///
    /// If no port is free.
    pub async fn start(upstream_port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("no free port");
        let port = listener
            .local_addr()
            .expect("a bound socket has an address")
            .port();
        let mode = watch::Sender::new(Mode::Pass);
        let cuts = broadcast::Sender::new(8);
        let accepted = Arc::new(AtomicU64::new(0));
        let upstream_port = Arc::new(AtomicU16::new(upstream_port));
        let shared = Shared {
            upstream_port: upstream_port.clone(),
            mode: mode.clone(),
            cuts: cuts.clone(),
        };
        let task = tokio::spawn(accept(listener, shared, accepted.clone()));
        Self {
            port,
            mode,
            cuts,
            upstream_port,
            accepted,
            task,
        }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:PORT/`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// The number of connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// The mode. Some modes change by themselves.
    pub fn mode(&self) -> Mode {
        *self.mode.borrow()
    }

    /// Changes the mode, for existing connections too.
    pub fn set(&self, mode: Mode) {
        assert_ne!(mode, Mode::Split(0), "a piece has at least one byte");
        assert_ne!(mode, Mode::Slow(0), "slower than anything is `Stall`");
        self.mode.send_replace(mode);
    }

    /// [`Mode::Pass`].
    pub fn pass(&self) {
        self.set(Mode::Pass);
    }

    /// [`Mode::Delay`].
    pub fn delay(&self, each_way: Duration) {
        self.set(Mode::Delay(each_way));
    }

    /// [`Mode::Stall`].
    pub fn stall(&self) {
        self.set(Mode::Stall);
    }

    /// [`Mode::DropReplies`].
    pub fn drop_replies(&self) {
        self.set(Mode::DropReplies);
    }

    /// [`Mode::DropRepliesFrom`].
    pub fn drop_replies_from(&self, request: &'static [u8]) {
        self.set(Mode::DropRepliesFrom(request));
    }

    /// [`Mode::Refuse`].
    pub fn refuse(&self) {
        self.set(Mode::Refuse);
    }

    /// [`Mode::Split`].
    pub fn split(&self, bytes: usize) {
        self.set(Mode::Split(bytes));
    }

    /// [`Mode::Slow`].
    pub fn slow(&self, bytes_per_second: u32) {
        self.set(Mode::Slow(bytes_per_second));
    }

    /// [`Mode::CutMidReply`].
    pub fn cut_mid_reply(&self) {
        self.set(Mode::CutMidReply);
    }

    /// Leaves all existing connections open and forwards nothing more over them, as where the other
    /// end has vanished without closing. New connections are not affected. A later
    /// [`cut`](Self::cut) closes them.
    pub fn half_open(&self) {
        let _ = self.cuts.send(Cut::HalfOpen);
    }

    /// Sends new connections to this port from now on. Existing ones continue.
    pub fn redirect(&self, upstream_port: u16) {
        self.upstream_port.store(upstream_port, Ordering::Relaxed);
    }

    /// Closes all existing connections now, in any mode. Bytes that they kept are lost.
    pub fn cut(&self) {
        let _ = self.cuts.send(Cut::Close);
    }

    /// As [`cut`](Self::cut), but clients see a reset (RST), as from a middlebox that lost their
    /// state.
    pub fn reset(&self) {
        let _ = self.cuts.send(Cut::Reset);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    Close,
    Reset,
    HalfOpen,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Reply,
}

#[derive(Clone)]
struct Shared {
    upstream_port: Arc<AtomicU16>,
    mode: watch::Sender<Mode>,
    cuts: broadcast::Sender<Cut>,
}

async fn accept(listener: TcpListener, shared: Shared, accepted: Arc<AtomicU64>) {
    // Aborting this task drops the set, which aborts the connections.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            client = listener.accept() => {
                let Ok((client, _)) = client else { continue };
                accepted.fetch_add(1, Ordering::Relaxed);
                if *shared.mode.borrow() != Mode::Refuse {
                    // Subscribed here, so that it misses no later cut.
                    connections.spawn(connection(client, shared.clone(), shared.cuts.subscribe()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(mut client: TcpStream, shared: Shared, mut cuts: broadcast::Receiver<Cut>) {
    let mut cut = tokio::select! {
        // However it ended, all that is left is to close it.
        _ = forward(&mut client, &shared) => None,
        cut = cuts.recv() => cut.ok(),
    };
    while let Some(Cut::HalfOpen) = cut {
        cut = cuts.recv().await.ok();
    }
    if let Some(Cut::Reset) = cut {
        let _ = client.set_zero_linger();
    }
}

async fn forward(client: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    unstalled(&mut shared.mode.subscribe()).await;
    let port = shared.upstream_port.load(Ordering::Relaxed);
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    // A Redis client never closes only one half: the end of either is the end of both.
    tokio::select! {
        end = pump(Direction::Request, client_read, server_write, &shared.mode) => end,
        end = pump(Direction::Reply, server_read, client_write, &shared.mode) => end,
    }
}

/// Reads and writes in separate tasks, so that a delay is a latency and does not limit the
/// throughput.
async fn pump(
    direction: Direction,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mode: &watch::Sender<Mode>,
) -> io::Result<()> {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(1024);

    let read = async move {
        let mut modes = mode.subscribe();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            unstalled(&mut modes).await;
            let length = tokio::select! {
                biased;
                _ = modes.changed() => continue,
                length = from.read(&mut buffer) => length?,
            };
            let mut due = Instant::now();
            if let Mode::Delay(each_way) = *modes.borrow() {
                due += each_way;
            }
            if length == 0 || queue.send((due, buffer[..length].to_vec())).await.is_err() {
                return Ok(());
            }
        }
    };

    let write = async {
        let mut modes = mode.subscribe();
        while let Some((due, bytes)) = queued.recv().await {
            sleep_until(due).await;
            match unstalled(&mut modes).await {
                Mode::DropReplies if direction == Direction::Reply => {}
                Mode::DropRepliesFrom(request)
                    if direction == Direction::Request && contains(&bytes, request) =>
                {
                    // Set first, so that no reply to it is forwarded.
                    mode.send_replace(Mode::DropReplies);
                    to.write_all(&bytes).await?;
                }
                Mode::CutMidReply if direction == Direction::Reply && claim_cut(mode) => {
                    to.write_all(&bytes[..(bytes.len() / 2).min(3)]).await?;
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Mode::Split(size) => {
                    for piece in bytes.chunks(size) {
                        to.write_all(piece).await?;
                        tokio::task::yield_now().await;
                    }
                }
                Mode::Slow(bytes_per_second) => {
                    // In steps of about 10 ms.
                    let step = (bytes_per_second / 100).max(1);
                    for piece in bytes.chunks(step as usize) {
                        let part = piece.len() as f64 / f64::from(bytes_per_second);
                        sleep(Duration::from_secs_f64(part)).await;
                        to.write_all(piece).await?;
                    }
                }
                _ => to.write_all(&bytes).await?,
            }
        }
        Ok(())
    };

    // The queue closes when reading ends, so that what was read is still written.
    tokio::try_join!(read, write).map(drop)
}

async fn unstalled(modes: &mut watch::Receiver<Mode>) -> Mode {
    *modes
        .wait_for(|mode| *mode != Mode::Stall)
        .await
        .expect("the connection has a sender")
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// True for the one connection that is to be cut.
fn claim_cut(mode: &watch::Sender<Mode>) -> bool {
    mode.send_if_modified(|mode| {
        let ours = *mode == Mode::CutMidReply;
        if ours {
            *mode = Mode::Pass;
        }
        ours
    })
}

//! The load of an HTTP server, from a process of its own.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, interval_at, sleep},
};

use crate::{
    helper::{Helper, exit_with_parent},
    sample::{Mark, Meter},
};

/// The first argument of the client's process.
pub const CLIENT: &str = "--http-client";

const RAMP: Duration = Duration::from_millis(30);

/// The load: so many connections, each with its own key. Each sends a request when it has the last
/// response, or at this pace.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct HttpLoad {
    pub connections: usize,
    pub pace: Option<Duration>,
}

/// What the client counted.
#[derive(Debug, Deserialize, Serialize)]
pub struct HttpSample {
    pub responses: u64,
    /// With status 200.
    pub admitted: u64,
    pub seconds: f64,
    /// Latencies in nanoseconds, and how often they occurred.
    pub latencies: Vec<(u64, u64)>,
}

/// Runs the client in a process of its own.
pub struct HttpClient(Helper);

impl HttpClient {
    pub fn start(server: SocketAddr, load: HttpLoad, slice: Duration) -> Self {
        let load = serde_json::to_string(&load).expect("numbers");
        let slice = slice.as_millis().to_string();
        Self(Helper::start(&[CLIENT, &server.to_string(), &load, &slice]))
    }

    /// Waits for the ramp to end, where the measurement begins.
    pub fn begins(&mut self) {
        assert_eq!(self.0.line(), "begin");
    }

    pub fn finish(mut self) -> HttpSample {
        serde_json::from_str(&self.0.line()).expect("the client prints a sample")
    }
}

/// Runs the load, and prints when it begins to measure and what it measured.
pub async fn run(server: &str, load: &str, slice: Duration) {
    exit_with_parent();
    let load: HttpLoad = serde_json::from_str(load).expect("the load is JSON");
    let mut connections = JoinSet::new();
    for index in 0..load.connections {
        let stream = TcpStream::connect(server).await.expect("no connection");
        stream.set_nodelay(true).expect("it is a TCP connection");
        connections.spawn(connection(stream, index, load));
    }
    sleep(RAMP).await;
    println!("begin");
    let mark = Mark::begin(None).await;
    sleep(slice).await;
    let sample = mark.end(None).await;
    let latencies = sample.latency.iter_recorded();
    let printed = HttpSample {
        responses: sample.ops,
        admitted: sample.admitted,
        seconds: sample.seconds,
        latencies: latencies
            .map(|value| (value.value_iterated_to(), value.count_at_value()))
            .collect(),
    };
    println!("{}", serde_json::to_string(&printed).expect("numbers"));
}

async fn connection(mut stream: TcpStream, index: usize, load: HttpLoad) {
    let request =
        format!("GET / HTTP/1.1\r\nhost: localhost\r\nx-api-key: tenant-{index:08}\r\n\r\n");
    // Not all at the same time.
    let mut pace = load.pace.map(|pace| {
        let offset = pace * index as u32 / load.connections as u32;
        interval_at(Instant::now() + offset, pace)
    });
    let mut buffer = vec![0; 4096];
    loop {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let start = Instant::now();
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the server closed the connection");
        let admitted = response(&mut stream, &mut buffer).await;
        Meter::with(|meter| {
            meter.count(1, u64::from(admitted));
            meter.time(start.elapsed());
        });
    }
}

/// Reads one response. Returns whether its status is 200.
async fn response(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    let mut length = 0;
    loop {
        let read = stream
            .read(&mut buffer[length..])
            .await
            .expect("a response");
        assert!(read > 0, "the server closed the connection");
        length += read;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        let expected = fields.find(|(name, _)| *name == "content-length");
        let expected: usize = expected.map_or(0, |(_, n)| n.parse().expect("a number of bytes"));
        if body.len() >= expected {
            return head.starts_with("HTTP/1.1 200");
        }
    }
}

//! A proxy with a delay, in a process of its own: the client's runtime does not pay for it.
//!
//! It has threads instead of a runtime, because tokio's timers are only accurate to 1 ms.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    helper::{Helper, exit_with_parent},
    load::block_until,
};

/// The first argument of the proxy's process.
pub const PROXY: &str = "--delay-proxy";

/// Bytes on their way, in one direction of one connection.
const CHUNK: usize = 64 * 1024;

pub struct DelayProxy {
    port: String,
    _process: Helper,
}

impl DelayProxy {
    /// Adds `round_trip` to each round trip to the server.
    pub fn start(server_port: u16, round_trip: Duration) -> Self {
        let one_way = (round_trip / 2).as_micros().to_string();
        let mut process = Helper::start(&[PROXY, &server_port.to_string(), &one_way]);
        Self {
            port: process.line(),
            _process: process,
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }
}

/// Runs the proxy, and prints its port.
pub fn serve(server_port: u16, one_way: Duration) {
    exit_with_parent();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("no free loopback port");
    println!("{}", listener.local_addr().expect("it is bound").port());
    for client in listener.incoming() {
        let client = client.expect("the listener stays open");
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port));
        let server = server.expect("the server accepts connections");
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("it is a TCP connection");
        }
        let copy = |stream: &TcpStream| stream.try_clone().expect("too many open files");
        forward(copy(&client), copy(&server), one_way);
        forward(server, client, one_way);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, one_way: Duration) {
    let (sender, chunks) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let due = Instant::now() + one_way;
            if sender.send((due, buffer[..length].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in chunks {
            block_until(due);
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

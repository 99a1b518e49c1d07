//! The rows: what is done to Redis, and what may come of it.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use tower_throttle::Fallback;

use super::{
    child::{CAPACITY, RATE},
    figures::{Figures, IN_FLIGHT},
    stage::{PLAIN, PROCESSES, PROXIED, Setup, Stage},
    support::RedisServer,
};

/// Processes that start together know of each other by then.
const WARM: f64 = 2.5;

/// After the fault: the way back, the grace, and a look at what is left.
const AFTER: f64 = 5.0;

/// Turns are used so much late on a busy machine, tokens.
const LATE: f64 = 0.05 * RATE;

/// What a row allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expect {
    /// Callers are told that there is no store.
    pub(crate) errors: bool,
    /// Processes notice an outage.
    pub(crate) outage: bool,
    /// All are back on Redis in the end.
    pub(crate) back: bool,
    /// While away, nine tenths of the share are admitted.
    pub(crate) share: bool,
    /// Tokens over the limit in the worst window; and where shares start empty.
    pub(crate) over: f64,
    pub(crate) over_strict: f64,
    /// Tokens that may be missing two seconds after the recovery.
    pub(crate) under: f64,
}

const OUTAGE: Expect = Expect {
    errors: false,
    outage: true,
    back: true,
    share: true,
    over: IN_FLIGHT + 0.1 * CAPACITY + LATE,
    over_strict: IN_FLIGHT + LATE,
    under: IN_FLIGHT + LATE,
};

/// What nobody but the metrics notices.
const CALM: Expect = Expect {
    outage: false,
    back: false,
    ..OUTAGE
};

type Script = for<'a> fn(&'a mut Stage, Length) -> BoxFuture<'a, ()>;

/// How long a fault lasts, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Length {
    pub(crate) full: bool,
}

impl Length {
    fn of(self, short: f64, full: f64) -> f64 {
        if self.full { full } else { short }
    }
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) fault: &'static str,
    pub(crate) expect: Expect,
    setup: Setup,
    /// Run by default.
    core: bool,
    script: Script,
}

impl Row {
    pub(crate) fn run(&self, full: bool) -> Figures {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut stage = Stage::new(&self.setup).await;
            stage.go();
            stage.sleep(WARM).await;
            (self.script)(&mut stage, Length { full }).await;
            stage.sleep(AFTER).await;
            Figures::of(&stage.finish().await)
        })
    }
}

/// The rows that run now.
pub(crate) fn all(full: bool) -> Vec<Row> {
    rows().into_iter().filter(|row| full || row.core).collect()
}

/// A row: name, fault, what it is run on, what it allows, and what is done.
macro_rules! row {
    ($core:literal $name:literal, $fault:literal, $setup:expr, $expect:expr, |$stage:ident, $length:ident| $script:block) => {{
        fn script<'a>($stage: &'a mut Stage, $length: Length) -> BoxFuture<'a, ()> {
            let _ = $length;
            async move { $script }.boxed()
        }
        Row {
            name: $name,
            fault: $fault,
            expect: $expect,
            setup: $setup,
            core: $core,
            script,
        }
    }};
}

const KEPT: Setup = Setup {
    args: &["--appendonly", "yes", "--appendfsync", "always"],
    ..PLAIN
};

fn rows() -> Vec<Row> {
    let mut rows = processes();
    rows.extend(network());
    rows.extend(answers());
    rows.extend(data());
    rows.extend(partial());
    rows
}

/// The server's process comes and goes.
fn processes() -> Vec<Row> {
    vec![
        row!(true "killed_and_restarted_with_its_data", "killed, restarted with its data", KEPT, OUTAGE, |stage, length| {
            stage.begins();
            stage.server.kill9();
            stage.sleep(length.of(2.0, 5.0)).await;
            stage.server.restart().await;
            stage.ends();
        }),
        row!(true "killed_and_restarted_empty", "killed, restarted empty", PLAIN, OUTAGE, |stage, length| {
            stage.begins();
            stage.server.kill9();
            stage.sleep(length.of(2.0, 5.0)).await;
            stage.server.restart().await;
            stage.ends();
        }),
        row!(false "stopped_and_restarted", "stopped (SIGTERM), restarted with its data", KEPT, OUTAGE, |stage, length| {
            stage.begins();
            stage.server.terminate().await;
            stage.sleep(length.of(2.0, 5.0)).await;
            stage.server.restart().await;
            stage.ends();
        }),
        row!(true "frozen_for_200_ms", "frozen for 0.2 s", PLAIN, OUTAGE, |stage, length| {
            stage.begins();
            stage.server.freeze();
            stage.sleep(0.2).await;
            stage.server.thaw();
            stage.ends();
        }),
        row!(true "frozen_for_3_s", "frozen for 3 s", PLAIN, OUTAGE, |stage, length| {
            stage.begins();
            stage.server.freeze();
            stage.sleep(3.0).await;
            stage.server.thaw();
            stage.ends();
        }),
        row!(true "flapping_with_its_data", "killed and restarted every 2 s, with its data", KEPT, OUTAGE, |stage, length| {
            flap(stage, length).await;
        }),
        row!(true "flapping_empty", "killed and restarted every 2 s, empty", PLAIN, OUTAGE, |stage, length| {
            flap(stage, length).await;
        }),
        row!(true "absent_at_start", "not there at the start", Setup { absent: true, ..PLAIN }, Expect { under: f64::INFINITY, ..OUTAGE }, |stage, length| {
            stage.begins();
            stage.sleep(length.of(2.0, 5.0)).await;
            stage.server.restart().await;
            stage.ends();
        }),
        row!(false "gone_for_good", "killed, and never again there", PLAIN, Expect { back: false, ..OUTAGE }, |stage, length| {
            stage.begins();
            stage.server.kill9();
            stage.sleep(length.of(2.0, 15.0)).await;
        }),
        row!(false "open", "killed, under `Fallback::Open`", Setup { policy: Some(Fallback::Open), ..PLAIN }, Expect { over: f64::INFINITY, over_strict: f64::INFINITY, ..OUTAGE }, |stage, length| {
            stage.begins();
            stage.server.kill9();
            stage.sleep(2.0).await;
            stage.server.restart().await;
            stage.ends();
        }),
        row!(false "closed", "killed, under `Fallback::Closed`", Setup { policy: Some(Fallback::Closed), ..PLAIN }, Expect { errors: true, share: false, under: f64::INFINITY, ..OUTAGE }, |stage, length| {
            stage.begins();
            stage.server.kill9();
            stage.sleep(2.0).await;
            stage.server.restart().await;
            stage.ends();
        }),
    ]
}

async fn flap(stage: &mut Stage, length: Length) {
    for _ in 0..if length.full { 8 } else { 3 } {
        stage.begins();
        stage.server.kill9();
        stage.sleep(1.0).await;
        stage.server.restart().await;
        stage.ends();
        stage.sleep(1.0).await;
    }
}

/// The way to the server is bad.
fn network() -> Vec<Row> {
    fn each(stage: &Stage, act: impl Fn(&super::support::Proxy)) {
        stage.proxies.iter().for_each(act);
    }
    const SLOW: Duration = Duration::from_micros(2_500);
    vec![
        row!(true "half_open", "links half open: the other end vanishes", PROXIED, OUTAGE, |stage, length| {
            stage.begins();
            each(stage, |proxy| proxy.half_open());
            stage.ends();
        }),
        row!(true "black_hole", "packets vanish for 3 s, new links too", PROXIED, OUTAGE, |stage, length| {
            stage.begins();
            each(stage, |proxy| proxy.stall());
            stage.sleep(3.0).await;
            each(stage, |proxy| proxy.cut());
            each(stage, |proxy| proxy.pass());
            stage.ends();
        }),
        row!(false "cut_mid_reply", "links cut in the middle of a reply", PROXIED, OUTAGE, |stage, length| {
            stage.begins();
            each(stage, |proxy| proxy.cut_mid_reply());
            stage.sleep(0.2).await;
            stage.ends();
        }),
        row!(false "replies_lost", "replies lost: executed, not heard of", PROXIED, OUTAGE, |stage, length| {
            stage.begins();
            each(stage, |proxy| proxy.drop_replies());
            stage.sleep(2.0).await;
            each(stage, |proxy| proxy.cut());
            each(stage, |proxy| proxy.pass());
            stage.ends();
        }),
        row!(false "slow_5_ms", "5 ms away", PROXIED, CALM, |stage, length| {
            stage.begins();
            each(stage, |proxy| proxy.delay(SLOW));
            stage.sleep(4.0).await;
            each(stage, |proxy| proxy.pass());
            stage.ends();
        }),
        row!(false "slow_50_ms", "50 ms away", PROXIED, CALM, |stage, length| {
            stage.begins();
            each(stage, |proxy| proxy.delay(10 * SLOW));
            stage.sleep(4.0).await;
            each(stage, |proxy| proxy.pass());
            stage.ends();
        }),
        row!(false "slow_500_ms", "500 ms away", PROXIED, OUTAGE, |stage, length| {
            stage.begins();
            each(stage, |proxy| proxy.delay(100 * SLOW));
            stage.sleep(4.0).await;
            each(stage, |proxy| proxy.pass());
            stage.ends();
        }),
        row!(false "reset", "links reset", PROXIED, OUTAGE, |stage, length| {
            stage.begins();
            each(stage, |proxy| proxy.reset());
            stage.ends();
        }),
        row!(false "refused", "links cut, new ones refused for 2 s", PROXIED, OUTAGE, |stage, length| {
            stage.begins();
            each(stage, |proxy| proxy.refuse());
            each(stage, |proxy| proxy.cut());
            stage.sleep(2.0).await;
            each(stage, |proxy| proxy.pass());
            stage.ends();
        }),
        row!(false "paused", "`CLIENT PAUSE` for 1 s", PLAIN, OUTAGE, |stage, length| {
            stage.begins();
            stage.command(&["CLIENT", "PAUSE", "1000"]).await;
            stage.sleep(1.0).await;
            stage.ends();
        }),
    ]
}

/// The server answers, with errors.
fn answers() -> Vec<Row> {
    const USER: Setup = Setup {
        user: "throttle:secret@",
        ..PLAIN
    };
    vec![
        row!(true "read_only", "demoted: READONLY", PLAIN, OUTAGE, |stage, length| {
            stage.begins();
            stage.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
            stage.sleep(2.0).await;
            stage.command(&["REPLICAOF", "NO", "ONE"]).await;
            stage.ends();
        }),
        row!(false "master_down", "demoted, serves nothing: MASTERDOWN", PLAIN, OUTAGE, |stage, length| {
            stage.begins();
            stage.command(&["CONFIG", "SET", "replica-serve-stale-data", "no"]).await;
            stage.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
            stage.sleep(2.0).await;
            stage.command(&["REPLICAOF", "NO", "ONE"]).await;
            stage.ends();
        }),
        row!(false "out_of_memory", "full, nothing may be evicted: OOM", PLAIN, OUTAGE, |stage, length| {
            stage.begins();
            stage.command(&["CONFIG", "SET", "maxmemory", "1000"]).await;
            stage.sleep(2.0).await;
            stage.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
            stage.ends();
        }),
        row!(false "wrong_password", "the password changes, and back", USER, OUTAGE, |stage, length| {
            stage.begins();
            stage.command(&["ACL", "SETUSER", "throttle", "resetpass", ">other"]).await;
            stage.command(&["CLIENT", "KILL", "USER", "throttle"]).await;
            stage.sleep(2.0).await;
            stage.command(&["ACL", "SETUSER", "throttle", "resetpass", ">secret"]).await;
            stage.ends();
        }),
        row!(false "no_right_for_scripts", "no right for EVALSHA: NOPERM", USER, OUTAGE, |stage, length| {
            stage.begins();
            stage.command(&["ACL", "SETUSER", "throttle", "-evalsha", "-eval"]).await;
            stage.sleep(2.0).await;
            stage.command(&["ACL", "SETUSER", "throttle", "+evalsha", "+eval"]).await;
            stage.ends();
        }),
        row!(true "no_right_for_set", "no right for SET within the script", USER, OUTAGE, |stage, length| {
            stage.begins();
            stage.command(&["ACL", "SETUSER", "throttle", "-set"]).await;
            stage.sleep(2.0).await;
            stage.command(&["ACL", "SETUSER", "throttle", "+set"]).await;
            stage.ends();
        }),
    ]
}

/// Data is lost, changed, or elsewhere.
fn data() -> Vec<Row> {
    /// The scopes of the processes, in Redis.
    const KEYS: [&str; 4] = [
        "throttle:v1:refusing:",
        "throttle:v1:waiting:",
        "throttle:v1:refusing%2C%20strict:",
        "throttle:v1:waiting%2C%20strict:",
    ];
    vec![
        row!(true "flushed", "`FLUSHALL`", PLAIN, OUTAGE, |stage, length| {
            stage.begins();
            stage.command(&["FLUSHALL"]).await;
            stage.ends();
        }),
        row!(false "scripts_flushed", "`SCRIPT FLUSH`", PLAIN, CALM, |stage, length| {
            stage.begins();
            stage.command(&["SCRIPT", "FLUSH"]).await;
            stage.ends();
        }),
        row!(false "key_evicted", "a bucket's key is evicted", PLAIN, Expect { over: CAPACITY + IN_FLIGHT + LATE, over_strict: CAPACITY + IN_FLIGHT + LATE, ..CALM }, |stage, length| {
            stage.begins();
            for key in KEYS {
                stage.command(&["DEL", key]).await;
            }
            stage.ends();
        }),
        row!(false "foreign_values", "a bucket's key is overwritten: a list, four bytes, NaN", PLAIN, Expect { over: 3.0 * CAPACITY + IN_FLIGHT + LATE, over_strict: 3.0 * CAPACITY + IN_FLIGHT + LATE, ..CALM }, |stage, length| {
            stage.begins();
            for key in KEYS {
                stage.command(&["DEL", key]).await;
                stage.command(&["LPUSH", key, "x"]).await;
                stage.sleep(0.2).await;
                stage.command(&["SET", key, "four"]).await;
                stage.sleep(0.2).await;
                // Four doubles that are no numbers: 0xff in each byte but as text of any kind.
                stage.command(&["SETRANGE", key, "31", "x"]).await;
            }
            stage.ends();
        }),
        row!(true "failover_in_sync", "failover to a replica in sync", PROXIED, OUTAGE, |stage, length| {
            let replica = replica(stage).await;
            stage.begins();
            stage.server.kill9();
            stage.sleep(1.0).await;
            promote(stage, replica).await;
            stage.ends();
        }),
        row!(false "failover_lagging", "failover to a replica that lags by 1.5 s", PROXIED, OUTAGE, |stage, length| {
            let replica = replica(stage).await;
            replica.freeze();
            stage.sleep(1.5).await;
            stage.begins();
            stage.server.kill9();
            replica.thaw();
            stage.sleep(1.0).await;
            promote(stage, replica).await;
            stage.ends();
        }),
    ]
}

async fn replica(stage: &Stage) -> RedisServer {
    let replica = RedisServer::start().await;
    let port = stage.server.port().to_string();
    let mut connection = replica.connection().await;
    redis::cmd("REPLICAOF")
        .arg("127.0.0.1")
        .arg(port)
        .exec_async(&mut connection)
        .await
        .expect("a replica");
    let in_sync = async {
        loop {
            let info: String = redis::cmd("INFO")
                .arg("replication")
                .query_async(&mut connection)
                .await
                .expect("information");
            if info.contains("master_link_status:up") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), in_sync)
        .await
        .expect("in sync");
    replica
}

/// The replica takes the place of the server.
async fn promote(stage: &mut Stage, replica: RedisServer) {
    redis::cmd("REPLICAOF")
        .arg("NO")
        .arg("ONE")
        .exec_async(&mut replica.connection().await)
        .await
        .expect("promoted");
    for proxy in &stage.proxies {
        proxy.redirect(replica.port());
        proxy.cut();
    }
    stage.server = replica;
}

/// Only some of the processes are hit.
fn partial() -> Vec<Row> {
    /// The other part decides from its share, until those who reach Redis leave room for it: a
    /// beat, and three seconds.
    fn over(cut_off: usize) -> Expect {
        let part = cut_off as f64 / PROCESSES as f64;
        let over = part * RATE * 4.0 + CAPACITY + IN_FLIGHT + LATE;
        Expect {
            over,
            over_strict: part * RATE * 4.0 + IN_FLIGHT + LATE,
            under: f64::INFINITY,
            ..OUTAGE
        }
    }
    async fn cut_off(stage: &mut Stage, count: usize, length: Length) {
        stage.begins();
        for proxy in &stage.proxies[..count] {
            proxy.stall();
        }
        stage.sleep(length.of(8.0, 60.0)).await;
        for proxy in &stage.proxies[..count] {
            proxy.cut();
            proxy.pass();
        }
        stage.ends();
    }
    vec![
        row!(true "one_of_four_cut_off", "1 of 4 processes cut off for 60 s", PROXIED, over(1), |stage, length| {
            cut_off(stage, 1, length).await;
        }),
        row!(true "three_of_four_cut_off", "3 of 4 processes cut off for 60 s", PROXIED, over(3), |stage, length| {
            cut_off(stage, 3, length).await;
        }),
        row!(true "process_killed", "a process killed while it holds tokens and turns", PLAIN, CALM, |stage, length| {
            stage.begins();
            stage.kill_process(0);
            stage.ends();
        }),
    ]
}

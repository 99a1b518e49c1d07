//! What goes wrong inside a Redis that goes on running, and how it is mended.

use std::{fs, time::Duration};

use redis::{FromRedisValue, RedisError, ToRedisArgs, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep};

use super::redis_server::{PATIENCE, POLL, RedisServer};

/// Where the keys go that only make loading take its time.
const BALLAST_DATABASE: i64 = 15;
const BALLAST_KEYS: u32 = 500;

impl RedisServer {
    /// Runs one command, given as its words, over a connection of its own.
    pub async fn try_command<T: FromRedisValue>(
        &self,
        words: &[impl ToRedisArgs],
    ) -> Result<T, RedisError> {
        command(words)
            .query_async(&mut self.connection().await)
            .await
    }

    /// As [`try_command`](Self::try_command).
    ///
    /// # Panics
    ///
    /// If the server answers an error.
    pub async fn command<T: FromRedisValue>(&self, words: &[impl ToRedisArgs]) -> T {
        let answer = self.try_command(words).await;
        answer.unwrap_or_else(|error| panic!("a command of the harness failed: {error}"))
    }

    /// `CONFIG SET name value`.
    pub async fn config_set(&self, name: &str, value: &str) {
        self.command::<()>(&["CONFIG", "SET", name, value]).await;
    }

    /// `FLUSHALL`: all data is gone.
    pub async fn flush_all(&self) {
        self.command::<()>(&["FLUSHALL"]).await;
    }

    /// `SCRIPT FLUSH`: all scripts are forgotten, so that EVALSHA answers NOSCRIPT.
    pub async fn script_flush(&self) {
        self.command::<()>(&["SCRIPT", "FLUSH"]).await;
    }

    /// `CLIENT PAUSE … WRITE`: scripts and writes wait, reads and
    /// [`client_unpause`](Self::client_unpause) do not. (With `ALL`, even that would wait.)
    pub async fn client_pause(&self, duration: Duration) {
        let ms = duration.as_millis().to_string();
        self.command::<()>(&["CLIENT", "PAUSE", &ms, "WRITE"]).await;
    }

    /// What was paused goes on.
    pub async fn client_unpause(&self) {
        self.command::<()>(&["CLIENT", "UNPAUSE"]).await;
    }

    /// Closes the connections of all clients, replicas excepted. How many those were.
    pub async fn client_kill_all(&self) -> u64 {
        self.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
            .await
    }

    /// `ACL SETUSER name rules`; connections of that user meet the new rules at once.
    pub async fn acl_set_user(&self, name: &str, rules: &[&str]) {
        let words = [&["ACL", "SETUSER", name], rules].concat();
        self.command::<()>(&words).await;
    }

    /// Makes this server a replica of `master`, and waits until it has all that is there.
    ///
    /// # Panics
    ///
    /// If that takes longer than 30 s.
    pub async fn replicate(&self, master: &RedisServer) {
        master.config_set("repl-diskless-sync-delay", "0").await;
        self.replica_of("127.0.0.1", &master.port().to_string())
            .await;
        self.until_in_sync(master).await;
    }

    /// Waits until this replica has received all that `master` has written so far.
    ///
    /// # Panics
    ///
    /// If that takes longer than 30 s.
    pub async fn until_in_sync(&self, master: &RedisServer) {
        let written: u64 = master
            .replication("master_repl_offset")
            .await
            .and_then(|offset| offset.parse().ok())
            .expect("a master has an offset");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let is_up = self.replication("master_link_status").await.as_deref() == Some("up");
            let read = self.replication("slave_repl_offset").await;
            if is_up && read.and_then(|offset| offset.parse().ok()) >= Some(written) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the replica lags:\n{}",
                self.log()
            );
            sleep(POLL).await;
        }
    }

    /// Makes a replica a master: it writes again.
    pub async fn promote(&self) {
        self.replica_of("NO", "ONE").await;
    }

    /// Makes this server the replica of a master that is not there: READONLY for every write.
    /// [`promote`](Self::promote) mends it.
    pub async fn demote(&self) {
        self.replica_of("127.0.0.1", "1").await;
    }

    /// As [`demote`](Self::demote), but MASTERDOWN for nearly everything.
    pub async fn demote_without_master(&self) {
        self.config_set("replica-serve-stale-data", "no").await;
        self.demote().await;
    }

    async fn replica_of(&self, host: &str, port: &str) {
        self.command::<()>(&["REPLICAOF", host, port]).await;
    }

    async fn replication(&self, field: &str) -> Option<String> {
        let told: String = self.command(&["INFO", "replication"]).await;
        let prefix = format!("{field}:");
        let line = told.lines().find_map(|line| line.strip_prefix(&prefix));
        line.map(|value| value.trim().to_owned())
    }

    /// Runs a script for this long, so that everybody else is told BUSY. Returns once that is
    /// so; [`script_kill`](Self::script_kill) ends it early.
    ///
    /// # Panics
    ///
    /// If no other client is told so within 30 s, or the duration is 10 s or more: so long does
    /// one of our connections wait for its answer.
    pub async fn busy_for(&self, duration: Duration) {
        assert!(duration < Duration::from_secs(10));
        self.config_set("busy-reply-threshold", "1").await;
        let mut runs = self.connection().await;
        let mut looks = self.connection().await;
        let mut kills = self.connection().await;
        tokio::spawn(async move {
            // Bounded by itself too, by some minutes. It fails when it is killed.
            let endless = command(&["EVAL", "for n = 1, 2e10 do end", "0"]);
            tokio::select! {
                _ = endless.query_async::<()>(&mut runs) => {}
                () = sleep(duration) => {
                    let _ = command(&["SCRIPT", "KILL"])
                        .query_async::<()>(&mut kills)
                        .await;
                }
            }
        });
        let deadline = Instant::now() + PATIENCE;
        while code(&ping(&mut looks).await) != Some("BUSY") {
            assert!(Instant::now() < deadline, "the script holds up nobody");
            sleep(POLL).await;
        }
    }

    /// Ends what [`busy_for`](Self::busy_for) began; nothing happens if it has ended by itself.
    pub async fn script_kill(&self) {
        let killed = self.try_command::<()>(&["SCRIPT", "KILL"]).await;
        let code = code(&killed);
        assert!(killed.is_ok() || code == Some("NOTBUSY"), "{killed:?}");
    }

    /// OOM for every write.
    pub async fn fill_memory(&self) {
        self.config_set("maxmemory-policy", "noeviction").await;
        self.config_set("maxmemory", "1").await;
    }

    /// Mends what [`fill_memory`](Self::fill_memory) did.
    pub async fn free_memory(&self) {
        self.config_set("maxmemory", "0").await;
    }

    /// Writes the data to disk; a later start finds what was there at this moment.
    pub async fn save(&self) {
        self.command::<()>(&["SAVE"]).await;
    }

    /// MISCONF for every write: the last background save has failed.
    pub async fn fail_saves(&self) {
        // A directory in the place of the file: root cannot replace that either.
        let file = self.dir().join("dump.rdb");
        let _ = fs::remove_file(&file);
        fs::create_dir(&file).expect("a directory of our own");
        self.config_set("save", "3600 100000000").await;
        self.background_save("err").await;
    }

    /// Mends what [`fail_saves`](Self::fail_saves) did.
    pub async fn mend_saves(&self) {
        fs::remove_dir(self.dir().join("dump.rdb")).expect("what `fail_saves` has made");
        self.background_save("ok").await;
    }

    async fn background_save(&self, expected: &str) {
        self.command::<()>(&["BGSAVE"]).await;
        let status = format!("rdb_last_bgsave_status:{expected}\r\n");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told: String = self.command(&["INFO", "persistence"]).await;
            if told.contains("rdb_bgsave_in_progress:0") && told.contains(&status) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "no save ended so:\n{}",
                self.log()
            );
            sleep(POLL).await;
        }
    }

    /// Saves, then starts again so slowly that it answers LOADING for about this long; returns
    /// when it does. Only for a server without `appendonly`.
    ///
    /// # Panics
    ///
    /// If it does not come up.
    pub async fn restart_loading(&mut self, duration: Duration) {
        let mut ballast = redis::pipe();
        ballast.cmd("SELECT").arg(BALLAST_DATABASE);
        for n in 0..BALLAST_KEYS {
            // More than a kilobyte: clients are heard once in that many bytes.
            ballast.set(format!("ballast:{n}"), vec![b'x'; 1_100]);
        }
        let mut connection = self.connection().await;
        ballast
            .query_async::<()>(&mut connection)
            .await
            .expect("room for the ballast");
        self.config_set("rdbcompression", "no").await;
        self.save().await;
        let delay = (duration.as_micros() / u128::from(BALLAST_KEYS)).to_string();
        self.restart_until_loading(&[
            "--key-load-delay",
            &delay,
            "--loading-process-events-interval-bytes",
            "1024",
        ])
        .await;
    }

    /// Lets no new client in, and closes the connections of all others: "max number of clients
    /// reached". Until [`Full::release`].
    pub async fn fill_clients(&self) -> Full {
        // One transaction: nobody comes in between. The connection itself is the one client.
        let mut connection = self.connection().await;
        redis::pipe()
            .atomic()
            .add_command(command(&["CONFIG", "SET", "maxclients", "1"]))
            .add_command(command(&["CLIENT", "KILL", "TYPE", "normal"]))
            .query_async::<()>(&mut connection)
            .await
            .expect("no room for one client");
        Full(connection)
    }

    /// `DEL key`, as an eviction would.
    pub async fn del(&self, key: &str) {
        self.command::<()>(&["DEL", key]).await;
    }

    /// Puts a list under this key, at once whatever was there.
    pub async fn set_list(&self, key: &str) {
        let made = format!("{key}.list");
        self.command::<()>(&["RPUSH", &made, "a"]).await;
        self.command::<()>(&["RENAME", &made, key]).await;
    }

    /// Puts these bytes under this key.
    pub async fn set_bytes(&self, key: &str, bytes: &[u8]) {
        self.command::<()>(&[b"SET", key.as_bytes(), bytes]).await;
    }

    /// Puts doubles under this key, in the form of a bucket's value.
    pub async fn set_numbers(&self, key: &str, numbers: &[f64]) {
        let bytes: Vec<_> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.set_bytes(key, &bytes).await;
    }
}

/// A server that is full of clients.
#[must_use = "dropping it lets one client in"]
pub struct Full(MultiplexedConnection);

impl Full {
    /// Lets clients in again.
    pub async fn release(mut self) {
        let open = command(&["CONFIG", "SET", "maxclients", "10000"]);
        open.query_async::<()>(&mut self.0)
            .await
            .expect("the one client is heard");
    }
}

fn command(words: &[impl ToRedisArgs]) -> redis::Cmd {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(word);
    }
    command
}

async fn ping(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    command(&["PING"]).query_async(connection).await
}

fn code<T>(answer: &Result<T, RedisError>) -> Option<&str> {
    answer.as_ref().err().and_then(RedisError::code)
}

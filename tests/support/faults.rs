//! Faults inside a running Redis, and their removal.

use std::{fs, time::Duration};

use redis::{FromRedisValue, RedisError, ToRedisArgs, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep};

use super::redis_server::{POLL, RedisServer, START_TIMEOUT};

/// The database of keys that only make loading slow.
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

    /// `FLUSHALL`: deletes all data.
    pub async fn flush_all(&self) {
        self.command::<()>(&["FLUSHALL"]).await;
    }

    /// `SCRIPT FLUSH`: removes all scripts, so that EVALSHA returns NOSCRIPT.
    pub async fn script_flush(&self) {
        self.command::<()>(&["SCRIPT", "FLUSH"]).await;
    }

    /// `CLIENT PAUSE … WRITE`: scripts and writes wait, reads and
    /// [`client_unpause`](Self::client_unpause) do not. (With `ALL`, even that would wait.)
    pub async fn client_pause(&self, duration: Duration) {
        let ms = duration.as_millis().to_string();
        self.command::<()>(&["CLIENT", "PAUSE", &ms, "WRITE"]).await;
    }

    /// `CLIENT UNPAUSE`: paused commands continue.
    pub async fn client_unpause(&self) {
        self.command::<()>(&["CLIENT", "UNPAUSE"]).await;
    }

    /// Closes the connections of all clients except replicas, and returns their number.
    pub async fn client_kill_all(&self) -> u64 {
        self.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
            .await
    }

    /// `ACL SETUSER name rules`. The new rules apply at once to existing connections of that user.
    pub async fn acl_set_user(&self, name: &str, rules: &[&str]) {
        let words = [&["ACL", "SETUSER", name], rules].concat();
        self.command::<()>(&words).await;
    }

    /// Makes this server a replica of `master`, and waits until it has all of its data.
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
        let deadline = Instant::now() + START_TIMEOUT;
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

    /// Makes a replica a master, which accepts writes again.
    pub async fn promote(&self) {
        self.replica_of("NO", "ONE").await;
    }

    /// Makes this server the replica of a master that does not exist: READONLY for every write.
    /// [`promote`](Self::promote) ends it.
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
        let info: String = self.command(&["INFO", "replication"]).await;
        let prefix = format!("{field}:");
        let line = info.lines().find_map(|line| line.strip_prefix(&prefix));
        line.map(|value| value.trim().to_owned())
    }

    /// Runs a script for this long, so that other clients get BUSY. Returns once they do.
    /// [`script_kill`](Self::script_kill) ends it early.
    ///
    /// # Panics
    ///
    /// If no other client gets BUSY within 30 s, or the duration is 10 s or more: a connection of
    /// the harness waits no longer than that for its reply.
    pub async fn busy_for(&self, duration: Duration) {
        assert!(duration < Duration::from_secs(10));
        self.config_set("busy-reply-threshold", "1").await;
        let mut runs = self.connection().await;
        let mut looks = self.connection().await;
        let mut kills = self.connection().await;
        tokio::spawn(async move {
            // Bounded by its own loop too, of some minutes. It fails when it is killed.
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
        let deadline = Instant::now() + START_TIMEOUT;
        while code(&ping(&mut looks).await) != Some("BUSY") {
            assert!(
                Instant::now() < deadline,
                "the script does not block other clients"
            );
            sleep(POLL).await;
        }
    }

    /// Ends the script of [`busy_for`](Self::busy_for). Does nothing if it has ended.
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

    /// Undoes [`fill_memory`](Self::fill_memory).
    pub async fn free_memory(&self) {
        self.config_set("maxmemory", "0").await;
    }

    /// Writes the data to disk. A later start loads it as it is now.
    pub async fn save(&self) {
        self.command::<()>(&["SAVE"]).await;
    }

    /// MISCONF for every write: the last background save has failed.
    pub async fn fail_saves(&self) {
        // A directory in place of the file, which even root cannot replace.
        let file = self.dir().join("dump.rdb");
        let _ = fs::remove_file(&file);
        fs::create_dir(&file).expect("a writable directory");
        self.config_set("save", "3600 100000000").await;
        self.background_save("err").await;
    }

    /// Undoes [`fail_saves`](Self::fail_saves).
    pub async fn repair_saves(&self) {
        fs::remove_dir(self.dir().join("dump.rdb")).expect("what `fail_saves` has made");
        self.background_save("ok").await;
    }

    async fn background_save(&self, expected: &str) {
        self.command::<()>(&["BGSAVE"]).await;
        let status = format!("rdb_last_bgsave_status:{expected}\r\n");
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let info: String = self.command(&["INFO", "persistence"]).await;
            if info.contains("rdb_bgsave_in_progress:0") && info.contains(&status) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "no save ended in this way:\n{}",
                self.log()
            );
            sleep(POLL).await;
        }
    }

    /// Saves, then restarts so slowly that it returns LOADING for about this long. Returns when it
    /// does. Only for a server without `appendonly`.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn restart_loading(&mut self, duration: Duration) {
        let mut ballast = redis::pipe();
        ballast.cmd("SELECT").arg(BALLAST_DATABASE);
        for n in 0..BALLAST_KEYS {
            // More than a kilobyte: the server handles clients once in that many bytes.
            ballast.set(format!("ballast:{n}"), vec![b'x'; 1_100]);
        }
        let mut connection = self.connection().await;
        ballast
            .query_async::<()>(&mut connection)
            .await
            .expect("the ballast is written");
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

    /// Accepts no new clients, and closes the connections of all others: "max number of clients
    /// reached". Lasts until [`Full::release`].
    pub async fn fill_clients(&self) -> Full {
        // One transaction, so that no client connects in between. Its own connection is the one
        // client.
        let mut connection = self.connection().await;
        redis::pipe()
            .atomic()
            .add_command(command(&["CONFIG", "SET", "maxclients", "1"]))
            .add_command(command(&["CLIENT", "KILL", "TYPE", "normal"]))
            .query_async::<()>(&mut connection)
            .await
            .expect("the fault was not set");
        Full(connection)
    }

    /// Writes a list under this key, and replaces any value at once.
    pub async fn set_list(&self, key: &str) {
        let made = format!("{key}.list");
        self.command::<()>(&["RPUSH", &made, "a"]).await;
        self.command::<()>(&["RENAME", &made, key]).await;
    }
}

/// A server at its maximum of clients.
#[must_use = "dropping it lets one client in"]
pub struct Full(MultiplexedConnection);

impl Full {
    /// Accepts clients again.
    pub async fn release(mut self) {
        let open = command(&["CONFIG", "SET", "maxclients", "10000"]);
        open.query_async::<()>(&mut self.0)
            .await
            .expect("the one client is served");
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

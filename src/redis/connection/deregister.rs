//! Deregisters a limiter before it stops, also while its runtime shuts down.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tokio::{runtime::Builder, time::timeout};

use crate::{
    redis::{
        connection::transport::{Session, Transport},
        heartbeat::Heartbeat,
    },
    scope::Keyspace,
};

/// The longest delay of a runtime that shuts down.
const LONGEST: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub(super) struct Deregistration {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) keyspace: Keyspace,
    pub(super) limiter: String,
    pub(super) timeout: Duration,
}

impl Deregistration {
    /// If it fails, the peers reserve a share for this limiter until `reserve_for` has passed.
    pub(super) async fn send(&self, session: &dyn Session) {
        let last = Heartbeat::last(&self.keyspace, &self.limiter);
        let _ = last.send(session, self.timeout).await;
    }

    /// Connects from a thread and a runtime of its own: the tasks and sockets of a runtime that
    /// shuts down cannot be used any more. Blocks until that is done, because a process often ends
    /// right after its runtime.
    pub(super) fn send_from_new_thread(self) {
        // A thread that unwinds from a panic must not block.
        if thread::panicking() {
            return;
        }
        let (done, is_done) = mpsc::channel();
        let run = move || {
            if let Ok(runtime) = Builder::new_current_thread().enable_all().build() {
                runtime.block_on(async {
                    let deregister = async {
                        if let Ok(session) = self.transport.connect().await {
                            self.send(&*session).await;
                        }
                    };
                    let _ = timeout(LONGEST, deregister).await;
                });
            }
            let _ = done.send(());
        };
        let name = "throttle-deregister".to_owned();
        if thread::Builder::new().name(name).spawn(run).is_ok() {
            let _ = is_done.recv_timeout(LONGEST);
        }
    }
}

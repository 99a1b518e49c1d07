//! Deregisters a limiter that ends from the others, also while its runtime is shut down.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tokio::{runtime::Builder, time::timeout};

use crate::redis::{
    connection::transport::{Session, Transport},
    heartbeat::Heartbeat,
};
use crate::scope::Keyspace;

/// A runtime that is shut down waits no longer.
const LONGEST: Duration = Duration::from_millis(500);

pub(crate) struct Deregistration {
    pub(crate) connect: Arc<dyn Transport>,
    pub(crate) keyspace: Keyspace,
    pub(crate) limiter: String,
    pub(crate) timeout: Duration,
}

impl Deregistration {
    /// Whether it was answered. Else the others reserve a share for this limiter for a while.
    pub(crate) async fn over(&self, session: &dyn Session) -> bool {
        let heartbeat = Heartbeat::last(&self.keyspace, &self.limiter);
        heartbeat.send(session, self.timeout).await.is_ok()
    }

    /// Connects from a thread and a runtime of its own: neither the tasks nor the sockets of a
    /// runtime that is shut down can be used any more. Blocks until that is done, because a process
    /// often ends right after its runtime.
    pub(crate) fn over_a_new_connection(self) {
        // A thread that unwinds from a panic does not block.
        if thread::panicking() {
            return;
        }
        let (done, is_done) = mpsc::channel();
        let run = move || {
            if let Ok(runtime) = Builder::new_current_thread().enable_all().build() {
                runtime.block_on(async {
                    let deregister = async {
                        if let Ok(session) = self.connect.connect().await {
                            self.over(&*session).await;
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

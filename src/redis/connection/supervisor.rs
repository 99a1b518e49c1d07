//! The background task that connects, beats, and tells Redis what memory granted.

use std::{
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::FutureExt;
use tokio::{
    sync::{Notify, futures::Notified},
    time::{Instant, sleep},
};

use crate::redis::{
    connection::deregister::Deregistration,
    connection::recovery::{Call, lower, undo},
    connection::state::{ConnectionState, Live, data_lost, disconnected},
    connection::transport::{Session, Transport},
    heartbeat::Epoch,
    op::Op,
    script::{Argument, First},
};
use crate::{bucket::BucketParams, decision::Failure, scope::Keyspace, task};

/// Between beats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Between beats in the grace: each limiter that comes back raises the part that is left to
/// those who reach Redis, and they learn of it by a beat.
const GRACE_BEAT: Duration = Duration::from_millis(100);

/// A name that no scope can have, because `#` is escaped.
const PROBE: &str = "#probe";

/// It holds the link only while it works, so that a limiter that is dropped ends it.
pub(crate) struct Supervisor {
    shared: Weak<ConnectionState>,
    /// Those with a lower number are of no account.
    number: u64,
    closed: Arc<Notify>,
    connect: Arc<dyn Transport>,
    keyspace: Keyspace,
    limiter: String,
    timeout: Duration,
    counted: Arc<AtomicU64>,
}

impl Supervisor {
    pub(crate) fn spawn(shared: &Arc<ConnectionState>, number: u64) {
        let keeper = Self {
            shared: Arc::downgrade(shared),
            number,
            closed: shared.closed.clone(),
            connect: shared.config.connect.clone(),
            keyspace: shared.config.keyspace.clone(),
            limiter: shared.limiter.clone(),
            timeout: shared.config.timeout,
            counted: shared.counted.clone(),
        };
        tokio::spawn(async move {
            keeper.run().await;
            keeper.uncount();
        });
    }

    async fn run(&self) {
        // Kept from one wait to the next, so that no wake-up between them is lost.
        let mut closed = pin!(self.closed.notified());
        loop {
            // What panics here is the driver, or a bug: tried again as after any other failure.
            let since = match AssertUnwindSafe(self.round(closed.as_mut()))
                .catch_unwind()
                .await
            {
                Ok(Some(since)) => since,
                Ok(None) => return,
                Err(panic) => {
                    let failure = task::failure("connects to Redis", &*panic);
                    if let Some(shared) = self.shared.upgrade() {
                        shared.crash(self.number, failure);
                    }
                    Instant::now()
                }
            };
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            // Whoever lost Redis together shall not come back together.
            let part = shared.random().f64();
            let pause = shared.pause().mul_f64(0.5 + 0.5 * part);
            drop(shared);
            // An attempt that took long is part of the pause.
            sleep(pause.saturating_sub(since.elapsed()).max(pause / 8)).await;
        }
    }

    /// One attempt to connect, and all that is done over the connection: from when the pause
    /// before the next counts. None once the limiter is gone, or has another keeper.
    async fn round<'a>(&'a self, closed: Pin<&mut Notified<'a>>) -> Option<Instant> {
        let shared = self.shared.upgrade()?;
        let start = Instant::now();
        if !shared.probes(self.number) {
            return None;
        }
        match self.attempt(&shared).await {
            Ok(session) => {
                let live = shared.recover(self.number, session);
                drop(shared);
                if let Some(live) = live {
                    if !self.keep(&live, closed).await {
                        return None;
                    }
                    if self.uncount()
                        && let Some(shared) = self.shared.upgrade()
                    {
                        shared.config.observer.reserved(0, 1.0);
                    }
                }
                Some(Instant::now())
            }
            Err(failure) => {
                shared.stay_down(self.number, failure);
                Some(start)
            }
        }
    }

    /// Connects, and tells Redis all that it must know before anybody is served by it.
    async fn attempt(&self, shared: &ConnectionState) -> Result<Box<dyn Session>, Failure> {
        let config = &shared.config;
        let session = config.connect.connect().await?;
        let mut argument = Argument::default();
        argument.bucket(BucketParams::new(1.0, 1.0), First::NONE);
        argument.op(0, Op::Reset);
        let key = config.keyspace.own(PROBE);
        let bytes = argument.into_bytes();
        shared.probe(&*session, key, &bytes).await?;
        let within = shared.connect_timeout();
        let beat = shared.heartbeat(&*session, within, self.number).await?;
        let (known, told) = (shared.epoch(), beat.map(|(epoch, _)| epoch));
        let back = beat.map_or(1.0, |(_, beat)| config.peers.back_before(beat));
        let kept = known
            .zip(told)
            .is_some_and(|(known, told)| known.id == told.id);
        if !kept {
            let remembered = config.levels.all();
            for call in lower(&config.keyspace, &remembered) {
                send(shared, &*session, told, back, call).await?;
            }
            // Who had lapsed is lost with the data.
            if known.is_some() {
                config.peers.expect_as_before(Instant::now());
            }
        }
        if !shared.is_kept_by(self.number) {
            return Err(disconnected());
        }
        // Not before: an attempt that ends half way must not forget what it was about.
        shared.set_epoch(told);
        if shared.left.load(Ordering::Relaxed) {
            shared.deregister(&*session, within).await?;
        }
        if let Some((_, beat)) = beat {
            config.peers.record(beat, Instant::now());
        }
        self.write_back(shared, &*session, told, back).await?;
        Ok(session)
    }

    /// Beats until the connection fails, or the limiter is gone: then false.
    async fn keep<'a>(&'a self, live: &Live, mut closed: Pin<&mut Notified<'a>>) -> bool {
        let mut gone = live.gone.subscribe();
        let mut turn = 0;
        loop {
            // What memory granted between the last payment and the first call by Redis, and
            // what it granted because Redis was too slow for some.
            if let Some(shared) = self.shared.upgrade() {
                let epoch = shared.epoch();
                let back = shared.recovered_part();
                if let Err(failure) = self.write_back(&shared, &*live.session, epoch, back).await {
                    shared.record(live.generation, Some(&failure));
                }
                shared.report_reserved();
                // Memory that an outage took is not needed once what is owed is paid.
                shared.config.ledger.sweep_step(turn);
                shared.config.levels.sweep_step(turn);
                turn += 1;
            }
            tokio::select! {
                biased;
                _ = gone.wait_for(|gone| *gone) => return true,
                () = closed.as_mut() => closed.set(self.closed.notified()),
                () = sleep(self.pause()) => {}
            }
            let shared = self.shared.upgrade();
            match shared.filter(|shared| !shared.is_closed.load(Ordering::Relaxed)) {
                Some(shared) if shared.left.load(Ordering::Relaxed) => {}
                Some(shared) => self.beats(&shared, live).await,
                None => {
                    self.deregister(live).await;
                    return false;
                }
            }
        }
    }

    /// Until the next beat.
    fn pause(&self) -> Duration {
        match self.shared.upgrade() {
            // However many there are, together they beat no more than a thousand times a second.
            Some(shared) if shared.is_recovering() => {
                let limiters = shared.config.peers.processes();
                GRACE_BEAT
                    .max(Duration::from_millis(limiters as u64))
                    .min(HEARTBEAT)
            }
            _ => HEARTBEAT,
        }
    }

    async fn beats(&self, shared: &ConnectionState, live: &Live) {
        let beat = shared
            .heartbeat(&*live.session, self.timeout, self.number)
            .await;
        if !shared.is_kept_by(self.number) {
            return;
        }
        let failure = match beat {
            Ok(None) => return,
            Ok(Some((epoch, beat))) => {
                let known = shared.epoch();
                if known.is_none_or(|known| known.id == epoch.id) {
                    shared.set_epoch(known.and(Some(epoch)));
                    shared.config.peers.record(beat, Instant::now());
                    return;
                }
                data_lost()
            }
            Err(failure) => failure,
        };
        shared.record(live.generation, Some(&failure));
    }

    /// Charges what memory granted, each amount once.
    async fn write_back(
        &self,
        shared: &ConnectionState,
        session: &dyn Session,
        epoch: Option<Epoch>,
        back: f64,
    ) -> Result<(), Failure> {
        let config = &shared.config;
        // One that was replaced may pay still: each payment has a number and is charged once.
        let payments = || {
            shared
                .payments
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let cancelled = config.ledger.cancelled();
        for call in undo(&config.keyspace, &cancelled) {
            send(shared, session, epoch, back, call).await?;
        }
        if config.ledger.has_debt() {
            let owed = config.ledger.drain();
            payments().add(&owed, Instant::now());
        }
        loop {
            let first = payments().first().map(|payment| {
                let call = payment.call(&config.keyspace, &shared.limiter, Instant::now());
                (payment.number(), call)
            });
            let Some((number, call)) = first else {
                return Ok(());
            };
            send(shared, session, epoch, back, call).await?;
            payments().confirm(number);
        }
    }

    async fn deregister(&self, live: &Live) {
        self.deregistration().over(&*live.session).await;
    }

    /// The others count this limiter no longer, as far as this keeper is concerned. Whether they
    /// did.
    fn uncount(&self) -> bool {
        let (counted, none) = (&self.counted, Ordering::Relaxed);
        counted.compare_exchange(self.number, 0, none, none).is_ok()
    }

    fn deregistration(&self) -> Deregistration {
        Deregistration {
            connect: self.connect.clone(),
            keyspace: self.keyspace.clone(),
            limiter: self.limiter.clone(),
            timeout: self.timeout,
        }
    }
}

async fn send(
    shared: &ConnectionState,
    session: &dyn Session,
    epoch: Option<Epoch>,
    back: f64,
    call: Call,
) -> Result<(), Failure> {
    let epoch = epoch.map(|epoch| epoch.id);
    let sent = Instant::now();
    let reply = shared
        .run_in_time(session, epoch, back, call.keys.clone(), &call.argument)
        .await?;
    call.learn(&reply, sent, &shared.config.levels);
    Ok(())
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Its runtime was shut down under it: where it has ended by itself, it is not counted.
        let counted = self.uncount();
        if let Some(shared) = self.shared.upgrade() {
            shared.abandon(Some(self.number));
            if counted {
                shared.config.observer.reserved(0, 1.0);
            }
        }
        if counted && self.connect.works_on_any_runtime() {
            self.deregistration().over_a_new_connection();
        }
    }
}

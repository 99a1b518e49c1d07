//! The handles that each thread keeps, for each limiter and recorder.

use std::{
    cell::RefCell,
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use metrics::Recorder;

use super::{handles::Handles, names::describe};

/// The most limiters, times recorders, that a thread keeps handles for; beyond that, the oldest
/// handles are dropped and registered again when they are next used.
const MOST_TABLES: usize = 32;

struct Table {
    /// The address of the recorder.
    recorder: usize,
    limiter: u64,
    handles: Handles,
}

thread_local! {
    static TABLES: RefCell<Vec<Table>> = const { RefCell::new(Vec::new()) };
}

/// A number for each limiter. An address would not do: a limiter may be made where another one was
/// dropped, after a new recorder was installed.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs `f` with this thread's handles for a limiter and the current recorder.
pub(super) fn with(limiter: u64, f: impl FnOnce(&mut Handles, &dyn Recorder)) {
    metrics::with_recorder(|recorder| {
        let mut f = Some(f);
        let mut run = |handles: &mut Handles| {
            if let Some(f) = f.take() {
                f(handles, recorder);
            }
        };
        let kept = TABLES.try_with(|tables| {
            let mut tables = tables.try_borrow_mut().ok()?;
            run(find(&mut tables, recorder, limiter));
            Some(())
        });
        // The thread ends, or the recorder itself uses a limiter: with handles that are not kept.
        if !matches!(kept, Ok(Some(()))) {
            describe(recorder);
            run(&mut Handles::default());
        }
    });
}

fn find<'a>(tables: &'a mut Vec<Table>, recorder: &dyn Recorder, limiter: u64) -> &'a mut Handles {
    let address = ptr::from_ref(recorder).cast::<()>().addr();
    let known = tables
        .iter()
        .position(|table| table.limiter == limiter && table.recorder == address);
    let place = known.unwrap_or_else(|| {
        if tables.len() >= MOST_TABLES {
            tables.remove(0);
        }
        describe(recorder);
        tables.push(Table {
            recorder: address,
            limiter,
            handles: Handles::default(),
        });
        tables.len() - 1
    });
    &mut tables[place].handles
}

//! The figures of a run.

use super::{
    child::{CAPACITY, MAX_WAIT, RATE, SCOPES, TASKS},
    record::{Outcome, Record},
    rows::Row,
    stage::{PROCESSES, Trace},
};

const MS: i64 = 1_000;
const SECOND: i64 = 1_000_000;

/// The default of `redis_timeout`, in us.
pub(crate) const REDIS_TIMEOUT: i64 = 100 * MS;

/// The requests that can be in flight on one scope when a fault begins: charged, and without a
/// reply.
pub(crate) const IN_FLIGHT: f64 = (TASKS * PROCESSES) as f64;

/// The figures of one scope.
#[derive(Clone, Debug, Default)]
pub(crate) struct OfScope {
    pub(crate) admitted: usize,
    pub(crate) by_memory: usize,
    /// Tokens over `capacity + rate * w` in the worst of all windows.
    pub(crate) excess: f64,
    /// That window in us, from the start of the first fault.
    pub(crate) worst: (i64, i64),
    /// Admissions as a part of the local share, while all processes that were cut off decided from
    /// memory.
    pub(crate) share: Option<f64>,
    /// Tokens that one bucket without faults would have admitted and these processes did not, from
    /// just before the first fault to two seconds after the last recovery.
    pub(crate) missing: Option<f64>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// All acquisitions.
    pub(crate) acquired: usize,
    /// Acquisitions rejected as `Unavailable` or `ExceedsCapacity`.
    pub(crate) errors: usize,
    /// Acquisitions that took longer than their `max_wait` and the timeout of Redis allow.
    pub(crate) overdue: usize,
    /// The longest acquisition, in us, without `max_wait` and requested before its process had
    /// noticed the outage.
    pub(crate) caught: i64,
    /// In us, of the acquisitions requested while their process was degraded.
    pub p99_while_degraded: Option<i64>,
    /// In us, from the end of the last fault until all processes had recovered.
    pub(crate) recovery: Option<i64>,
    /// The outages noticed by the processes.
    pub(crate) outages: usize,
    pub(crate) scopes: Vec<OfScope>,
    /// Tokens that the faults allowed in addition to those that the row allows.
    allowed: f64,
}

impl Figures {
    pub(crate) fn of(trace: &Trace) -> Self {
        let mut figures = Self {
            scopes: vec![OfScope::default(); SCOPES.len()],
            allowed: trace.allowed,
            ..Self::default()
        };
        let outages: Vec<_> = trace
            .records
            .iter()
            .map(|records| outages(records, trace.to))
            .collect();
        figures.outages = outages.iter().map(Vec::len).sum();
        figures.latencies(trace, &outages);
        let last = trace.marks.last().map_or(trace.to, |mark| mark.to);
        // Noticed by the end of the fault, if at all. Where the cause ended at once, a moment
        // later.
        let recovery = outages.iter().flatten().filter_map(|outage| {
            let (from, to) = *outage;
            (from <= last + 300 * MS && to > last && to < trace.to).then_some(to - last)
        });
        // Where all recovered before the cause had ended completely, the recovery took no time.
        figures.recovery = recovery
            .max()
            .or((figures.outages > 0 && trace.killed.is_empty())
                .then_some(0)
                .filter(|_| outages.iter().flatten().all(|(_, to)| *to <= last)));
        for (scope, of) in figures.scopes.iter_mut().enumerate() {
            *of = OfScope::of(trace, &outages, scope, last + figures.recovery.unwrap_or(0));
        }
        figures
    }

    fn latencies(&mut self, trace: &Trace, outages: &[Vec<(i64, i64)>]) {
        let Some(first) = trace.marks.first() else {
            return;
        };
        let mut while_degraded = Vec::new();
        for (records, outages) in trace.records.iter().zip(outages) {
            for record in records {
                let Record::Acquired {
                    scope,
                    requested,
                    took,
                    outcome,
                } = *record
                else {
                    continue;
                };
                self.acquired += 1;
                let failed = matches!(outcome, Outcome::Unavailable | Outcome::Impossible);
                self.errors += usize::from(failed);
                let wait = match SCOPES[scope].waits {
                    true => MAX_WAIT.as_micros() as i64,
                    false => 0,
                };
                // A busy process may miss its reservation and request another one.
                if took > wait + REDIS_TIMEOUT + 2 * SECOND {
                    self.overdue += 1;
                    let (name, requested) = (SCOPES[scope].name, (requested - first.from) / MS);
                    println!(
                        "hung: {name}, requested at {requested} ms, {} ms: {outcome:?}",
                        took / MS
                    );
                }
                if SCOPES[scope].waits || requested + took < first.from {
                    continue;
                }
                if outages
                    .iter()
                    .any(|(from, to)| (*from..*to).contains(&requested))
                {
                    while_degraded.push(took);
                } else {
                    self.caught = self.caught.max(took);
                }
            }
        }
        while_degraded.sort_unstable();
        self.p99_while_degraded = while_degraded.get(while_degraded.len() * 99 / 100).copied();
    }

    /// Checks what the row allows: counts always, times only for full runs, where the machine is
    /// idle.
    pub(crate) fn judge(&self, row: &Row, full: bool) -> Result<(), String> {
        let mut wrong = Vec::new();
        let mut check = |passed: bool, what: String| {
            if !passed {
                wrong.push(what);
            }
        };
        if row.expect.errors {
            check(
                self.errors > 0,
                "no request was rejected as unavailable".into(),
            );
        } else {
            check(self.errors == 0, format!("{} errors", self.errors));
        }
        check(self.overdue == 0, format!("{} hung", self.overdue));
        if row.expect.outage {
            check(self.outages >= 1, "no outage was noticed".into());
        }
        for (of, kind) in self.scopes.iter().zip(&SCOPES) {
            let over = match kind.strict {
                true => row.expect.over_strict,
                false => row.expect.over,
            } + self.allowed;
            check(
                of.excess <= over,
                format!("{}: {:.1} over, {over:.1} allowed", kind.name, of.excess),
            );
            if let Some(share) = of.share.filter(|_| row.expect.share) {
                // A local share starts lower by its part of what callers of other processes have
                // reserved. That may be 24 tokens here, of 200 in the shortest period that counts.
                check(
                    share >= 0.85,
                    format!("{}: {share:.2} of the share", kind.name),
                );
            }
            if let Some(missing) = of.missing {
                let under = row.expect.under;
                check(
                    missing <= under,
                    format!("{}: {missing:.1} missing, {under:.1} allowed", kind.name),
                );
            }
        }
        if row.expect.recovers {
            let slowest = if full { 1_500 * MS } else { 5 * SECOND };
            match self.recovery {
                Some(recovery) => check(
                    recovery <= slowest,
                    format!("recovered after {} ms", recovery / MS),
                ),
                None => check(false, "not recovered".into()),
            }
        }
        if full {
            let caught = self.caught;
            let allowed = REDIS_TIMEOUT + 20 * MS;
            check(caught <= allowed, format!("caught for {} ms", caught / MS));
            if let Some(p99) = self.p99_while_degraded {
                check(p99 < MS, format!("p99 {p99} us while degraded"));
            }
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join("; "))
        }
    }
}

/// The periods in which a process was degraded.
fn outages(records: &[Record], end: i64) -> Vec<(i64, i64)> {
    let mut outages = Vec::new();
    let mut since = None;
    for record in records {
        if let Record::Health { at, degraded } = *record {
            match (since, degraded) {
                (None, true) => since = Some(at),
                (Some(from), false) => {
                    outages.push((from, at));
                    since = None;
                }
                _ => {}
            }
        }
    }
    outages.extend(since.map(|from| (from, end)));
    outages
}

impl OfScope {
    fn of(trace: &Trace, outages: &[Vec<(i64, i64)>], scope: usize, recovered: i64) -> Self {
        let mut first_requested = i64::MAX;
        let mut admitted = Vec::new();
        let mut by_memory = 0;
        for (process, records) in trace.records.iter().enumerate() {
            for record in records {
                if let Record::Acquired {
                    scope: of,
                    requested,
                    took,
                    outcome,
                } = *record
                    && of == scope
                {
                    first_requested = first_requested.min(requested);
                    if outcome.is_admitted() {
                        admitted.push((requested + took, process));
                        by_memory += usize::from(outcome == Outcome::AdmittedByMemory);
                    }
                }
            }
        }
        admitted.sort_unstable();
        let times: Vec<_> = admitted.iter().map(|(at, _)| *at).collect();
        let count = |from, to| {
            let before = |at| times.partition_point(|time| *time < at);
            before(to) - before(from)
        };
        let seconds = |us: i64| us as f64 / 1e6;
        // All processes that were degraded at all, from when the last one became degraded until the
        // first one recovered.
        let outages: Vec<_> = outages
            .iter()
            .enumerate()
            .filter_map(|(process, outages)| {
                let longest = outages.iter().max_by_key(|(from, to)| to - from);
                longest.map(|longest| (process, *longest))
            })
            .collect();
        let from = outages.iter().map(|(_, (from, _))| *from).max();
        let to = outages.iter().map(|(_, (_, to))| *to).min();
        let share = from.zip(to).and_then(|(from, to)| {
            let processes: Vec<_> = outages.iter().map(|(process, _)| *process).collect();
            let taken = admitted
                .iter()
                .filter(|(at, process)| (from..to).contains(at) && processes.contains(process))
                .count();
            let share = seconds(to - from) * RATE * processes.len() as f64 / PROCESSES as f64;
            // In a shorter period, a single token would decide.
            (to - from > SECOND).then(|| taken as f64 / share)
        });
        let settled_at = recovered + 2 * SECOND;
        let missing = trace.marks.first().and_then(|mark| {
            let from = mark.from - SECOND;
            (settled_at <= trace.to && trace.killed.is_empty()).then(|| {
                let allowed = RATE * seconds(settled_at - from);
                allowed - count(from, settled_at) as f64
            })
        });
        let (excess, (from, to)) = excess(&times);
        let first = trace.marks.first().map_or(0, |mark| mark.from);
        Self {
            admitted: times.len(),
            by_memory,
            excess,
            worst: (from - first, to - first),
            share,
            missing,
        }
    }
}

/// The tokens by which the worst window, of any length, exceeds `capacity + rate * w`, and that
/// window.
///
/// For the window from the `i`th admission to the `j`th, the excess is `(j - rate * t_j) + 1 - (i -
/// rate * t_i) - capacity`: a running minimum finds all of them.
fn excess(times: &[i64]) -> (f64, (i64, i64)) {
    let Some(start) = times.first() else {
        return (0.0, (0, 0));
    };
    let mut least = (f64::INFINITY, 0);
    let mut worst = (f64::NEG_INFINITY, (0, 0));
    for (index, at) in times.iter().enumerate() {
        let above = index as f64 - RATE * (at - start) as f64 / 1e6;
        if above < least.0 {
            least = (above, *at);
        }
        let over = above + 1.0 - least.0 - CAPACITY;
        if over > worst.0 {
            worst = (over, (least.1, *at));
        }
    }
    worst
}

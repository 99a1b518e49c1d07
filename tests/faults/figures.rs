//! What a run amounts to.

use super::{
    child::{CAPACITY, MAX_WAIT, RATE, SCOPES, TASKS},
    record::{Outcome, Record},
    rows::Row,
    stage::{PROCESSES, Trace},
};

const MS: i64 = 1_000;
const SECOND: i64 = 1_000_000;

/// Unless set.
pub(crate) const REDIS_TIMEOUT: i64 = 100 * MS;

/// What can be in flight on one scope when a fault strikes: charged, and answered by nobody.
pub(crate) const IN_FLIGHT: f64 = (TASKS * PROCESSES) as f64;

/// Of one scope.
#[derive(Clone, Debug, Default)]
pub(crate) struct OfScope {
    pub(crate) admitted: usize,
    pub(crate) by_memory: usize,
    /// Tokens over `capacity + rate * w` in the worst window of all.
    pub(crate) excess: f64,
    /// That window, from the first fault: us.
    pub(crate) worst: (i64, i64),
    /// Of the share, while all who were cut off decided from memory.
    pub(crate) share: Option<f64>,
    /// Tokens that one bucket that never failed would have admitted, and these did not; from
    /// just before the first fault to two seconds after the last recovery.
    pub(crate) missing: Option<f64>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// Acquisitions in all.
    pub(crate) acquired: usize,
    /// Unavailable, or impossible.
    pub(crate) errors: usize,
    /// Took longer than they were willing to wait and Redis may take.
    pub(crate) overdue: usize,
    /// The longest that a caller who does not wait took, asked before its process knew: us.
    pub(crate) caught: i64,
    /// Of those who asked while their process knew: us.
    pub p99_while_degraded: Option<i64>,
    /// From the end of the last fault until all were back: us.
    pub(crate) back: Option<i64>,
    /// The outages that processes noticed.
    pub(crate) outages: usize,
    pub(crate) scopes: Vec<OfScope>,
    /// What the faults allowed beyond what the row does, tokens.
    allowed: f64,
}

impl Figures {
    pub(crate) fn of(trace: &Trace) -> Self {
        let mut figures = Self {
            scopes: vec![OfScope::default(); SCOPES.len()],
            allowed: trace.allowed,
            ..Self::default()
        };
        let spells: Vec<_> = trace
            .records
            .iter()
            .map(|records| spells(records, trace.to))
            .collect();
        figures.outages = spells.iter().map(Vec::len).sum();
        figures.latencies(trace, &spells);
        let last = trace.marks.last().map_or(trace.to, |mark| mark.to);
        // Noticed by then, if at all; where the cause was gone at once, a moment later.
        let back = spells.iter().flatten().filter_map(|spell| {
            let (from, to) = *spell;
            (from <= last + 300 * MS && to > last && to < trace.to).then_some(to - last)
        });
        // Where all were back before the cause was quite gone, it took no time.
        figures.back = back
            .max()
            .or((figures.outages > 0 && trace.killed.is_empty())
                .then_some(0)
                .filter(|_| spells.iter().flatten().all(|(_, to)| *to <= last)));
        for (scope, of) in figures.scopes.iter_mut().enumerate() {
            *of = OfScope::of(trace, &spells, scope, last + figures.back.unwrap_or(0));
        }
        figures
    }

    fn latencies(&mut self, trace: &Trace, spells: &[Vec<(i64, i64)>]) {
        let Some(first) = trace.marks.first() else {
            return;
        };
        let mut while_degraded = Vec::new();
        for (records, spells) in trace.records.iter().zip(spells) {
            for record in records {
                let Record::Acquired {
                    scope,
                    asked,
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
                // A turn may be missed by a pause of the process, and asked for again.
                if took > wait + REDIS_TIMEOUT + 2 * SECOND {
                    self.overdue += 1;
                    let (name, asked) = (SCOPES[scope].name, (asked - first.from) / MS);
                    println!(
                        "hung: {name}, asked at {asked} ms, {} ms: {outcome:?}",
                        took / MS
                    );
                }
                if SCOPES[scope].waits || asked + took < first.from {
                    continue;
                }
                if spells
                    .iter()
                    .any(|(from, to)| (*from..*to).contains(&asked))
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

    /// What the row allows: counts always, times only where the machine is known to be quiet.
    pub(crate) fn judge(&self, row: &Row, full: bool) -> Result<(), String> {
        let mut wrong = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        if row.expect.errors {
            check(self.errors > 0, "nobody was refused as unavailable".into());
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
                // A share starts lower by its part of what callers of other processes have
                // reserved, which may be 24 tokens here, of 200 in the shortest time that counts.
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
        if row.expect.back {
            let slowest = if full { 1_500 * MS } else { 5 * SECOND };
            match self.back {
                Some(back) => check(back <= slowest, format!("back after {} ms", back / MS)),
                None => check(false, "never back".into()),
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

/// When a process knew that Redis was away.
fn spells(records: &[Record], end: i64) -> Vec<(i64, i64)> {
    let mut spells = Vec::new();
    let mut since = None;
    for record in records {
        if let Record::Health { at, degraded } = *record {
            match (since, degraded) {
                (None, true) => since = Some(at),
                (Some(from), false) => {
                    spells.push((from, at));
                    since = None;
                }
                _ => {}
            }
        }
    }
    spells.extend(since.map(|from| (from, end)));
    spells
}

impl OfScope {
    fn of(trace: &Trace, spells: &[Vec<(i64, i64)>], scope: usize, recovered: i64) -> Self {
        let mut first_asked = i64::MAX;
        let mut admitted = Vec::new();
        let mut by_memory = 0;
        for (process, records) in trace.records.iter().enumerate() {
            for record in records {
                if let Record::Acquired {
                    scope: of,
                    asked,
                    took,
                    outcome,
                } = *record
                    && of == scope
                {
                    first_asked = first_asked.min(asked);
                    if outcome.is_admitted() {
                        admitted.push((asked + took, process));
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
        // All who fell back at all, from when the last of them did until the first was back.
        let outages: Vec<_> = spells
            .iter()
            .enumerate()
            .filter_map(|(process, spells)| {
                let longest = spells.iter().max_by_key(|(from, to)| to - from);
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
            // Of less, one token more or less would decide.
            (to - from > SECOND).then(|| taken as f64 / share)
        });
        let settled = recovered + 2 * SECOND;
        let missing = trace.marks.first().and_then(|mark| {
            let from = mark.from - SECOND;
            (settled <= trace.to && trace.killed.is_empty()).then(|| {
                let allowed = RATE * seconds(settled - from);
                allowed - count(from, settled) as f64
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

/// By how many tokens the worst window, of whatever length, is over `capacity + rate * w`;
/// and that window.
///
/// For the window from the `i`th admission to the `j`th, that is
/// `(j - rate * t_j) + 1 - (i - rate * t_i) - capacity`: a running minimum finds all of them.
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

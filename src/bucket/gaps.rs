//! Cancelled reservations in the middle of a queue.
//!
//! The list is sorted by due time. Adjacent gaps are joined.

use super::{BucketParams, Reservation};

/// Reservations are adjacent if one begins at most this long, in microseconds, before or after the
/// other is due. The difference comes from rounding: a due time is rounded up to a whole
/// microsecond, but the next due time is computed from the exact level.
pub(super) const ADJACENT_US: f64 = 2.0;

/// A bucket stores at most this many gaps. The tokens of further ones return by the refill.
const MAX_GAPS: usize = 64;

/// A part of a gap that a new reservation fits into.
pub(super) struct Place {
    index: usize,
    start: f64,
    /// When the new reservation is due, in the bucket's time.
    pub(super) due: f64,
}

/// The first place for a reservation of `cost`, in a bucket whose time is `at`.
pub(super) fn find_place(
    gaps: &[Reservation],
    cost: f64,
    at: f64,
    paused_until: f64,
    params: BucketParams,
) -> Option<Place> {
    if cost > params.capacity {
        return None;
    }
    gaps.iter().enumerate().find_map(|(index, gap)| {
        let length = (gap.until - gap.from) * (cost / gap.tokens);
        let start = if paused_until > at {
            gap.from.max(paused_until)
        } else {
            gap.from
        };
        let due = start + length;
        // The same length from the same start may be rounded to the next but one double.
        let fits = cost <= gap.tokens && due <= gap.until + 0.5;
        fits.then_some(Place { index, start, due })
    })
}

/// Reserves `cost` at this place. What refills before it is charged for the pause.
pub(super) fn fill(gaps: &mut Vec<Reservation>, place: &Place, cost: f64) {
    let gap = &mut gaps[place.index];
    let paused = gap.tokens * ((place.start - gap.from) / (gap.until - gap.from));
    gap.tokens -= cost + paused;
    gap.from = place.due;
    if gap.tokens <= 0.0 || gap.from >= gap.until {
        gaps.remove(place.index);
    }
}

/// Leaves in the first gap at most this many tokens that have refilled by `at`. Returns the others.
pub(super) fn trim(gaps: &mut [Reservation], at: f64, most: f64) -> f64 {
    let Some(gap) = gaps.first_mut() else {
        return 0.0;
    };
    let length = gap.until - gap.from;
    let refilled = gap.tokens * ((at - gap.from) / length);
    let excess = (refilled - most).max(0.0);
    gap.from += length * (excess / gap.tokens);
    gap.tokens -= excess;
    excess
}

/// Adds a cancelled reservation, joined with the gaps adjacent to it. One that is shorter than the
/// resolution of a double is dropped: its tokens return by the refill.
pub(super) fn remember(gaps: &mut Vec<Reservation>, gone: Reservation) {
    if gone.from >= gone.until {
        return;
    }
    let next = gaps.partition_point(|gap| gap.until < gone.until);
    let adjoins = |before: &Reservation, after: &Reservation| {
        (after.from - before.until).abs() <= ADJACENT_US
    };
    let before = next.checked_sub(1);
    let before = before.filter(|&before| adjoins(&gaps[before], &gone));
    let after = gaps.get(next).is_some_and(|after| adjoins(&gone, after));
    match (before, after) {
        (Some(before), true) => {
            let after = gaps.remove(next);
            let gap = &mut gaps[before];
            gap.until = after.until;
            gap.tokens += gone.tokens + after.tokens;
        }
        (Some(before), false) => {
            let gap = &mut gaps[before];
            gap.until = gone.until;
            gap.tokens += gone.tokens;
        }
        (None, true) => {
            let gap = &mut gaps[next];
            gap.from = gone.from;
            gap.tokens += gone.tokens;
        }
        (None, false) if gaps.len() < MAX_GAPS => {
            gaps.insert(next, gone);
        }
        (None, false) => {}
    }
}

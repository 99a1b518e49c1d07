//! Tokens admitted over time.

use super::run::Run;
use crate::chart::{Axis, BLACK, BLUE, Look, Picture, Plot, Scale, Text, VERMILION, grouped};
use crate::report::Place;

impl Run {
    pub fn draw(&self) {
        Place::Docs.write("outage.svg", &draw(self));
    }
}

fn draw(run: &Run) -> String {
    let step = run.step_ms as f64 / 1e3;
    let end = run.throttle.len() as f64 * step;
    let allowed = run.rate * step;
    let down = run.back_s - run.killed_s;
    // The steps of which at least half is in the outage.
    let during = (run.killed_s / step).round() as usize..(run.back_s / step).round() as usize;
    let limit = allowed * during.len() as f64;
    let sum = |counts: &[u64]| counts[during.clone()].iter().sum::<u64>() as f64;

    let most = run.naive.iter().chain(&run.throttle).max();
    let most = most.map_or(allowed, |most| *most as f64);
    let unit = if most > 250.0 { 100.0 } else { 50.0 };
    let steps = (most / unit).ceil();
    let plot = Plot {
        left: 68.0,
        top: 112.0,
        width: 716.0,
        height: 260.0,
        across: Axis {
            scale: Scale::Linear,
            from: 0.0,
            to: end,
            ticks: (0..=end as usize / 2).map(|n| 2.0 * n as f64).collect(),
            title: "seconds".to_owned(),
        },
        up: Axis {
            scale: Scale::Linear,
            from: 0.0,
            to: steps * unit,
            ticks: (0..=steps as usize).map(|n| n as f64 * unit).collect(),
            title: format!("tokens admitted per {} ms", run.step_ms),
        },
    };
    let line = |colour, width, dashes| Look {
        colour,
        width,
        dashes,
        marker: None,
    };
    let throttle_look = line(BLUE, 3.4, "none");
    let naive_look = line(VERMILION, 2.0, "none");
    let limit_look = line(BLACK, 1.4, "7 4");

    let mut picture = Picture::new(
        508.0,
        &format!(
            "What {} processes with one limit admit while Redis is down",
            run.processes
        ),
        &format!(
            "Tokens admitted per {} ms over {end} seconds, with Redis down for {down:.1} of them. \
             During the outage tower-throttle admits {} tokens, a naive script with a \
             fallback that starts full in every process {}, where the limit is {limit:.0}.",
            run.step_ms,
            sum(&run.throttle),
            sum(&run.naive)
        ),
    );
    let entries = [
        (throttle_look, 24.0, "tower-throttle".to_owned()),
        (
            naive_look,
            192.0,
            "naive script, fallback that starts full in each process".to_owned(),
        ),
        (
            limit_look,
            612.0,
            format!("limit: {allowed} per {} ms", run.step_ms),
        ),
    ];
    for (look, x, name) in &entries {
        look.legend(&mut picture, *x, 64.0, name);
    }

    let title = format!("Redis is down for {down:.1} s");
    plot.band(&mut picture, run.killed_s, run.back_s, &title);
    plot.frame(&mut picture);
    let counts = |counts: &[u64]| counts.iter().map(|n| *n as f64).collect::<Vec<_>>();
    plot.steps(&mut picture, naive_look, 0.0, step, &counts(&run.naive));
    plot.steps(
        &mut picture,
        throttle_look,
        0.0,
        step,
        &counts(&run.throttle),
    );
    let limit_line = [(0.0, allowed), (1.01 * end, allowed)];
    plot.line(&mut picture, limit_look, &limit_line);
    let beside = (plot.x(1.01 * end) + 4.0, plot.y(allowed) + 4.5);
    picture.text(beside.0, beside.1, Text::LABEL, "limit");

    let middle = plot.x(f64::midpoint(run.killed_s, run.back_s));
    for (look, counts) in [(throttle_look, &run.throttle), (naive_look, &run.naive)] {
        let style = Text {
            bold: true,
            colour: look.colour,
            anchor: "middle",
            ..Text::LABEL
        };
        let tokens = sum(counts);
        let text = format!(
            "{} tokens: {:.1}× the limit",
            grouped(tokens),
            tokens / limit
        );
        // Above the line, but beside its peak at the beginning.
        let highest = counts[during.clone()].iter().skip(5).max();
        let y = plot.y(highest.map_or(allowed, |highest| *highest as f64)) - 9.0;
        picture.text(middle, y, style, &text);
    }

    let caption = [
        format!(
            "{} processes with one limit of {} tokens/s and a burst of {} tokens; both limiters run \
             in each process, at the same time.",
            run.processes, run.rate, run.burst
        ),
        format!(
            "For each limiter, {} tasks per process request tokens: at once after a token, {} ms \
             after a rejection.",
            run.tasks, run.pause_ms
        ),
        format!(
            "redis-server is killed and restarted without its data; the limit allows {} tokens \
             meanwhile.",
            grouped(limit)
        ),
    ];
    picture.caption(446.0, &caption);
    picture.finish()
}

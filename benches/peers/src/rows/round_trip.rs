//! Redis behind a network with a round trip of 5 ms.

use std::time::Duration;

use super::{Claim, Outcome, case};
use crate::{
    case::{Case, ops_per_second, p50, rounds},
    load::Load,
    plan::Plan,
    server::{self, Probe, Proxy},
    subjects::{HOT, Keys, MINIMAL, Minimal, NAIVE, Naive, Serial, THROTTLE, Throttle},
};

const ROUND_TRIP: Duration = Duration::from_millis(5);

pub async fn hot(plan: &Plan) -> Outcome {
    let server = server::start().await;
    let probe = &Probe::new(&server.url()).await;
    let proxy = Proxy::start(server.port()).await;
    proxy.delay(ROUND_TRIP / 2);
    let url = proxy.url();
    let keys = &Keys::new(1);
    let load = Load {
        tasks: 64,
        scopes: 1,
    };
    let serial = Serial::new(&url, HOT, keys).await;
    let cases = vec![
        Case::new(NAIVE, Naive::new(&url, HOT, keys).await, load, Some(probe)),
        Case::new(
            MINIMAL,
            Minimal::new(&url, HOT, keys).await,
            load,
            Some(probe),
        ),
        Case::new(
            THROTTLE,
            Throttle::redis(&url, "bench", HOT, keys),
            load,
            Some(probe),
        ),
        Case::new("naive script, not pipelined", serial, load, Some(probe)),
    ];
    let figures = rounds(plan, cases).await;
    let throttle = case(&figures, THROTTLE);
    // The timers of the proxy add to the delay, so the reference is the measured round trip.
    let trips = throttle.ratio(case(&figures, MINIMAL), p50);
    let serial = throttle.ratio(
        case(&figures, "naive script, not pipelined"),
        ops_per_second,
    );
    let naive = throttle.ratio(case(&figures, NAIVE), ops_per_second);
    Outcome {
        claims: vec![
            Claim::at_most("p50 relative to the minimal script", 2.0, trips, ""),
            Claim::at_least(
                "throughput relative to the naive script, not pipelined",
                8.0,
                serial,
                "x",
            ),
            Claim::at_least(
                "throughput relative to the naive script, pipelined",
                8.0,
                naive,
                "x",
            ),
        ],
        figures,
        ..Outcome::default()
    }
}

//! Redis behind a network.

use std::time::Duration;

use super::{Claim, Outcome, case};
use crate::{
    case::{Case, ops_per_second, p50, rounds},
    load::Load,
    plan::Plan,
    server::{self, Probe, Proxy},
    subjects::{Direct, HOT, Keys, Naive, Ours, Serial},
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
        Case::new(
            "naive",
            Naive::new(&url, HOT, keys).await,
            load,
            Some(probe),
        ),
        Case::new(
            "direct",
            Direct::new(&url, HOT, keys).await,
            load,
            Some(probe),
        ),
        Case::new(
            "ours",
            Ours::redis(&url, "bench", HOT, keys),
            load,
            Some(probe),
        ),
        Case::new("naive, not pipelined", serial, load, Some(probe)),
    ];
    let figures = rounds(plan, cases).await;
    let ours = case(&figures, "ours");
    // The proxy's timers are part of the distance: the script alone says how far it is.
    let trips = ours.ratio(case(&figures, "direct"), p50);
    let serial = ours.ratio(case(&figures, "naive, not pipelined"), ops_per_second);
    let naive = ours.ratio(case(&figures, "naive"), ops_per_second);
    Outcome {
        claims: vec![
            Claim::at_most("p50, in round trips of direct", 2.0, trips, ""),
            Claim::at_least(
                "operations against naive, one round trip each",
                8.0,
                serial,
                "x",
            ),
            Claim::at_least("operations against naive, pipelined", 8.0, naive, "x"),
        ],
        figures,
        ..Outcome::default()
    }
}

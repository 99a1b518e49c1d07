//! All rows with their targets.

use std::time::Duration;

use super::{
    Goal, Row,
    claim::count,
    costs, curves, distant, http_server, keys, memory,
    redis::{self, ROUND_TRIP},
    rejected, row, waiting,
};
use crate::{
    metric::{CLIENT_CPU, COMMANDS, P50, P99, REDIS_CPU, THROUGHPUT, TIME},
    subjects::{CELL, GOVERNOR, HOT, MANY, MINIMAL, NAIVE, SPENT, THROTTLE},
};

const NO_GOALS: [Goal; 0] = [];
/// A round trip that adds to that of the loopback device.
const FAR: Duration = Duration::from_millis(5);
const NEAR: Duration = Duration::ZERO;

/// All rows, in the order in which they run.
pub fn all() -> Vec<Row> {
    let mut rows = one_scope();
    rows.extend(many_scopes());
    rows.extend(without_redis());
    rows.extend(distant());
    rows.extend(others());
    rows
}

fn one_scope() -> Vec<Row> {
    vec![
        row(
            "caller",
            "One caller, 500 requests/s",
            MINIMAL,
            [
                P50.of(THROTTLE).over(MINIMAL).at_most(1.15),
                CLIENT_CPU.of(THROTTLE).over(MINIMAL).at_most(1.2),
            ],
            redis::caller,
        ),
        row(
            "hot-64",
            "One hot scope, 64 tasks",
            NAIVE,
            [
                THROUGHPUT.of(THROTTLE).over(NAIVE).at_least(4.5),
                COMMANDS.of(THROTTLE).at_most(0.02),
            ],
            |plan| redis::hot(plan, 64, redis::SCRIPTS),
        ),
        row(
            "hot-1024",
            "One hot scope, 1,024 tasks",
            NAIVE,
            [
                THROUGHPUT.of(THROTTLE).over(NAIVE).at_least(28.0),
                CLIENT_CPU.of(THROTTLE).at_most(0.35),
                COMMANDS.of(THROTTLE).at_most(0.003),
            ],
            |plan| redis::hot(plan, 1_024, redis::ALL),
        ),
        row(
            "hot-4096",
            "One hot scope, 4,096 tasks",
            NAIVE,
            [THROUGHPUT.of(THROTTLE).over(NAIVE).at_least(25.0)],
            |plan| redis::hot(plan, 4_096, redis::FEW),
        )
        .long(),
        row(
            "hot-10240",
            "One hot scope, 10,240 tasks",
            NAIVE,
            [THROUGHPUT.of(THROTTLE).over(NAIVE).at_least(25.0)],
            |plan| redis::hot(plan, 10_240, redis::FEW),
        )
        .long(),
        row(
            "lease",
            "One hot scope with a lease, 1,024 tasks",
            NAIVE,
            [
                THROUGHPUT.of(redis::LEASE).over(NAIVE).at_least(45.0),
                THROUGHPUT
                    .of(redis::LARGE_LEASE)
                    .over(GOVERNOR)
                    .at_least(0.95),
            ],
            redis::lease,
        ),
        row(
            "waiting",
            "512 waiters at 20,000 tokens/s, two limiters",
            THROTTLE,
            waiting::goals(0.08),
            |plan| waiting::saturated(plan, 0.0),
        ),
        row(
            "waiting-cancelled",
            "512 waiters at 20,000 tokens/s, one in five cancelled",
            THROTTLE,
            waiting::goals(0.12),
            |plan| waiting::saturated(plan, 0.2),
        )
        .long(),
    ]
}

/// Relative to redis-cell and, per request, to the naive script. With so many scopes 1,024 tasks
/// rarely request the same one twice in a call: the CPU time of a request is that of a scope in a
/// full batch.
fn many(throughput: f64, redis_cpu: f64) -> Vec<Goal> {
    vec![
        THROUGHPUT.of(THROTTLE).over(CELL).at_least(throughput),
        REDIS_CPU.of(THROTTLE).over(NAIVE).at_most(redis_cpu),
    ]
}

fn many_scopes() -> Vec<Row> {
    let mut of_100k = many(1.8, 0.27);
    of_100k.push(CLIENT_CPU.of(THROTTLE).over(NAIVE).at_most(0.3));
    vec![
        row(
            "scopes-10k",
            "10,000 scopes, 1,024 tasks",
            NAIVE,
            many(2.0, 0.22),
            |plan| redis::scopes(plan, 10_000, redis::ALL),
        ),
        row(
            "scopes-100k",
            "100,000 scopes, 1,024 tasks",
            NAIVE,
            of_100k,
            |plan| redis::scopes(plan, 100_000, redis::SCRIPTS),
        )
        .long(),
        row(
            "scopes-1m",
            "1,000,000 scopes, 1,024 tasks",
            NAIVE,
            many(1.5, 0.42),
            |plan| redis::scopes(plan, 1_000_000, redis::FEW),
        )
        .long(),
        row(
            "scopes-unseen",
            "Each request for a new scope, 1,024 tasks",
            NAIVE,
            [THROUGHPUT.of(THROTTLE).over(CELL).at_least(1.0)],
            redis::unseen,
        ),
        row(
            "redis-bytes",
            "Memory of Redis per bucket, names of 15 bytes",
            "",
            [count("bytes per bucket, tower-throttle").at_most(120.0)],
            keys::bytes,
        ),
        row(
            "bystander",
            "Another client of Redis, PING every 1 ms, while scopes come and are forgotten",
            "",
            NO_GOALS,
            keys::bystander,
        )
        .long(),
    ]
}

fn without_redis() -> Vec<Row> {
    let time = |most| [TIME.of(THROTTLE).over(GOVERNOR).at_most(most)];
    let rejected = |least| {
        [THROUGHPUT
            .of(rejected::ON_REDIS)
            .over(GOVERNOR)
            .at_least(least)]
    };
    vec![
        row(
            "rejected-1",
            "One rejected scope, 1,024 tasks",
            GOVERNOR,
            rejected(0.95),
            |plan| rejected::scopes(plan, 1),
        ),
        row(
            "rejected-10k",
            "10,000 rejected scopes, 1,024 tasks",
            GOVERNOR,
            rejected(0.6),
            |plan| rejected::scopes(plan, 10_000),
        )
        .long(),
        row(
            "memory-1",
            "In memory, one scope, 1 thread",
            GOVERNOR,
            time(1.2),
            |plan| memory::direct(plan, HOT, 1, 1),
        ),
        row(
            "memory-10k",
            "In memory, 10,000 scopes, 1 thread",
            GOVERNOR,
            time(1.2),
            |plan| memory::direct(plan, MANY, 10_000, 1),
        ),
        row(
            "memory-1m",
            "In memory, 1,000,000 scopes, 1 thread",
            GOVERNOR,
            time(0.9),
            |plan| memory::direct(plan, MANY, 1_000_000, 1),
        )
        .long(),
        row(
            "memory-rejected",
            "In memory, one rejected scope, 2 threads",
            GOVERNOR,
            time(1.0),
            |plan| memory::direct(plan, SPENT, 1, 2),
        ),
        row(
            "layer",
            "The layer over a no-op service, in memory, 1 thread",
            GOVERNOR,
            time(1.1),
            memory::layer,
        ),
    ]
}

/// p50 and p99 in round trips.
fn trips(p50: f64, p99: f64) -> [Goal; 2] {
    [
        P50.of(THROTTLE).over(ROUND_TRIP).at_most(p50),
        P99.of(THROTTLE).over(ROUND_TRIP).at_most(p99),
    ]
}

fn distant() -> Vec<Row> {
    let below_naive = || {
        [
            P50.of(THROTTLE).over(NAIVE).at_most(1.0),
            P99.of(THROTTLE).over(NAIVE).at_most(1.0),
        ]
    };
    let closed = || {
        [
            THROUGHPUT.of(THROTTLE).over(NAIVE).at_least(1.0),
            P50.of(THROTTLE).over(ROUND_TRIP).at_most(1.1),
        ]
    };
    vec![
        row(
            "open-1",
            "20,000 requests/s, one scope",
            NAIVE,
            below_naive(),
            |plan| distant::open(plan, HOT, 1, NEAR),
        ),
        row(
            "open-10k",
            "20,000 requests/s, 10,000 scopes",
            NAIVE,
            below_naive(),
            |plan| distant::open(plan, MANY, 10_000, NEAR),
        )
        .long(),
        row(
            "open-1-far",
            "Redis 5 ms away, 20,000 requests/s, one scope",
            NAIVE,
            trips(1.05, 1.3),
            |plan| distant::open(plan, HOT, 1, FAR),
        ),
        row(
            "open-10k-far",
            "Redis 5 ms away, 20,000 requests/s, 10,000 scopes",
            NAIVE,
            trips(1.05, 1.3),
            |plan| distant::open(plan, MANY, 10_000, FAR),
        ),
        row(
            "far-64",
            "Redis 5 ms away, one hot scope, 64 tasks",
            NAIVE,
            closed(),
            |plan| distant::closed(plan, HOT, 1, 64, FAR),
        ),
        row(
            "far-1024",
            "Redis 5 ms away, one hot scope, 1,024 tasks",
            NAIVE,
            closed(),
            |plan| distant::closed(plan, HOT, 1, 1_024, FAR),
        )
        .long(),
        row(
            "far-10k",
            "Redis 5 ms away, 10,000 scopes, 1,024 tasks",
            NAIVE,
            closed(),
            |plan| distant::closed(plan, MANY, 10_000, 1_024, FAR),
        ),
        row(
            "start",
            "From the start of a client to its first decision",
            NAIVE,
            NO_GOALS,
            redis::start,
        ),
    ]
}

fn others() -> Vec<Row> {
    vec![
        row(
            "http",
            "axum over loopback, 64 connections",
            http_server::NO_LAYER,
            [THROUGHPUT
                .of(http_server::IN_MEMORY)
                .over(http_server::NO_LAYER)
                .at_least(0.97)],
            http_server::saturated,
        ),
        row(
            "http-paced",
            "axum over loopback, 3,200 requests/s over 32 connections",
            http_server::NO_LAYER,
            [
                count("p99 added in memory, µs").at_most(50.0),
                count("p99 added on Redis, relative to the p99 of PING").at_most(1.0),
            ],
            http_server::paced,
        ),
        row(
            "allocations",
            "Allocations per acquisition",
            "",
            [
                count("tower-throttle, fixed scope").at_most(0.0),
                count("tower-throttle, literal key").at_most(0.0),
                count("tower-throttle, `String` key").at_most(1.0),
                count("tower-throttle, Redis").at_most(1.0),
            ],
            costs::allocations,
        ),
        row(
            "bytes",
            "Memory of the process per bucket that is not full, names of 15 bytes",
            "",
            [
                count("bytes per bucket, tower-throttle in memory").at_most(72.0),
                count("bytes per bucket, tower-throttle on Redis").at_most(96.0),
            ],
            costs::bytes,
        ),
        row(
            "curve-tasks",
            "Throughput by number of tasks: one hot scope",
            "",
            NO_GOALS,
            curves::tasks,
        ),
        row(
            "curve-scopes",
            "Throughput by number of scopes: 1,024 tasks",
            "",
            NO_GOALS,
            curves::scopes,
        ),
        row(
            "curve-processes",
            "Throughput by number of processes: one hot scope, 256 tasks each",
            "",
            NO_GOALS,
            curves::processes,
        ),
    ]
}

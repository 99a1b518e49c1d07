//! A server is scraped as Prometheus does it: the scrape has every metric of the dashboard and the
//! alerts, every metric is documented, and no client input is among them.
#![cfg(all(
    feature = "metrics",
    feature = "redis",
    feature = "http",
    feature = "axum"
))]

mod support;

use std::{collections::BTreeSet, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use support::RedisServer;
use tokio::{net::TcpListener, time::Instant};
use tower_throttle::{
    Fallback, Health, Limiter, Permit, PermitHandle, Quota, RateLimitLayer, Scope, extract::header,
};

const DASHBOARD: &str = include_str!("../docs/grafana-dashboard.json");
const ALERTS: &str = include_str!("../docs/alerts.yml");
const DOCS: &str = include_str!("../docs/metrics.md");

const SECOND: Duration = Duration::from_secs(1);
/// What a customer sends, which must not be in any scrape.
const KEY: &str = "sk-of-a-customer-17";

const DAY: Quota = Quota::per_day(1.0);
const TENANT: Scope = DAY.burst(2.0).scope("tenant");
const LOGIN: Scope = DAY
    .burst(10.0)
    .scope("login")
    .fallback(Fallback::FailClosed);
const TRIED: Scope = DAY.scope("tried");
const LOCAL: Scope = DAY.scope("local");
const TOKENS: Scope = Quota::per_day(10_000.0).scope("tokens").cost(100.0);
const PACED: Scope = Quota::per_second(4.0).burst(1.0).scope("paced");
const SLOW: Scope = Quota::per_hour(1.0).scope("slow");

/// A limiter whose timeouts are longer than the delays of a busy machine.
fn connect(url: &str) -> Limiter {
    let builder = Limiter::builder().redis(url);
    builder.redis_timeout(10 * SECOND).build().expect("a URL")
}

fn recorder() -> PrometheusHandle {
    let seconds = [0.001, 0.01, 0.1, 1.0, 10.0];
    let sizes = [1.0, 10.0, 100.0, 1_000.0];
    let full = |name: &str| Matcher::Full(format!("tower_throttle_{name}"));
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(full("wait_seconds"), &seconds)
        .and_then(|builder| builder.set_buckets_for_metric(full("redis_call_seconds"), &seconds))
        .and_then(|builder| builder.set_buckets_for_metric(full("batch_size"), &sizes))
        .expect("buckets")
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).expect("the only one of this process");
    handle
}

fn layer<K>(limiter: &Limiter, scope: K) -> RateLimitLayer<K> {
    RateLimitLayer::new(limiter, scope)
}

/// A server with a limit of every kind, and a route for its metrics.
async fn serve(redis: &Limiter, memory: &Limiter, prometheus: PrometheusHandle) -> String {
    let settles = |permit: &mut Permit, _: &mut axum::response::Response| {
        permit.settle(150.0);
        permit.settle(40.0);
    };
    let hello = || get(async || "hello");
    let app = Router::new()
        .route(
            "/tenant",
            hello()
                .layer(layer(redis, TENANT.by(header("x-api-key")).or_unlimited()).respond_http()),
        )
        .route("/login", hello().layer(layer(redis, LOGIN).respond_http()))
        .route(
            "/tried",
            hello().layer(layer(redis, TRIED).respond_http().shadow(true)),
        )
        .route("/local", hello().layer(layer(memory, LOCAL).respond_http()))
        .route(
            "/tokens",
            hello().layer(layer(redis, TOKENS).respond_http().on_response(settles)),
        )
        .route(
            "/paced",
            hello().layer(layer(redis, PACED).respond_http().max_wait(20 * SECOND)),
        )
        .route(
            "/impossible",
            hello().layer(layer(redis, TENANT.cost(3.0)).respond_http()),
        )
        .route("/metrics", get(async move || prometheus.render()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

struct Client(reqwest::Client, String);

impl Client {
    async fn send(&self, path: &str) -> (StatusCode, String) {
        let request = self.0.get(format!("{}{path}", self.1));
        let response = request.header("x-api-key", KEY).send().await;
        let response = response.expect("the server responds");
        let status = response.status();
        (status, response.text().await.expect("a body"))
    }

    /// The number of requests served, of `requests` in sequence.
    async fn served(&self, path: &str, requests: usize) -> usize {
        let mut served = 0;
        for _ in 0..requests {
            served += usize::from(self.send(path).await.0 == StatusCode::OK);
        }
        served
    }

    /// The scrape, once it has this line.
    async fn scrape(&self, line: &str) -> Scrape {
        let start = Instant::now();
        loop {
            let scrape = Scrape(self.send("/metrics").await.1);
            if scrape.0.lines().any(|other| other == line) {
                return scrape;
            }
            assert!(start.elapsed() < 10 * SECOND, "no {line} in\n{}", scrape.0);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct Scrape(String);

impl Scrape {
    fn samples(&self) -> impl Iterator<Item = &str> {
        self.0.lines().filter(|line| !line.starts_with('#'))
    }

    /// The names of all series, including those of buckets and sums.
    fn names(&self) -> BTreeSet<&str> {
        self.samples()
            .filter_map(|line| line.split(['{', ' ']).next())
            .filter(|name| name.starts_with("tower_throttle_"))
            .collect()
    }

    /// The name and kind of each metric.
    fn kinds(&self) -> BTreeSet<(&str, &str)> {
        let declared = self
            .0
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "));
        declared
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| name.starts_with("tower_throttle_"))
            .collect()
    }

    fn values_of(&self, label: &str) -> BTreeSet<&str> {
        let start = format!("{label}=\"");
        self.samples()
            .filter(|line| line.starts_with("tower_throttle_"))
            .filter_map(|line| line.split_once(&start)?.1.split('"').next())
            .collect()
    }

    fn value(&self, series: &str) -> f64 {
        let value = self
            .samples()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no {series} in\n{}", self.0));
        value.parse().expect("a number")
    }
}

/// The metrics that a query names.
fn names_in(query: &str) -> impl Iterator<Item = &str> {
    query
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("tower_throttle_"))
}

fn rules() -> Vec<&'static str> {
    let lines = ALERTS.lines().map(str::trim);
    lines
        .filter_map(|line| line.strip_prefix("expr: "))
        .collect()
}

fn queries(dashboard: &serde_json::Value) -> Vec<&str> {
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().expect("targets"));
    targets
        .map(|target| target["expr"].as_str().expect("a query"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn scrape_has_the_metrics_of_dashboard_and_alerts() {
    let prometheus = recorder();
    let mut server = RedisServer::start().await;
    let redis = connect(&server.url());
    let memory = Limiter::in_memory();
    let http = reqwest::Client::builder().no_proxy().build();
    let client = Client(
        http.expect("a client"),
        serve(&redis, &memory, prometheus.clone()).await,
    );

    assert_eq!(client.served("/tenant", 5).await, 2);
    assert_eq!(client.served("/login", 2).await, 2);
    assert_eq!(client.served("/tried", 4).await, 4);
    assert_eq!(client.served("/local", 2).await, 1);
    assert_eq!(client.served("/tokens", 3).await, 3);
    assert_eq!(client.served("/impossible", 1).await, 0);
    let paced = futures_util::future::join_all((0..4).map(|_| client.served("/paced", 1)));
    assert_eq!(paced.await.iter().sum::<usize>(), 4);
    // One that is cancelled while it waits.
    redis.try_acquire(SLOW.key(KEY)).await.expect("full");
    let waiter = tokio::spawn(redis.acquire(SLOW.key(KEY), 7_200 * SECOND));
    let start = Instant::now();
    while redis.bucket(&SLOW.key(KEY)).level().await.unwrap() > -0.5
        && start.elapsed() < 10 * SECOND
    {
        tokio::task::yield_now().await;
    }
    waiter.abort();
    let _ = waiter.await;

    // A limiter whose memory is full. Its buckets leave the gauge when it is dropped.
    let full = Limiter::builder().max_scopes(1).build().expect("settings");
    for key in 0..4 {
        full.try_acquire(LOCAL.key(key))
            .await
            .expect("full buckets");
    }
    assert_eq!(full.overflowed(), 3);
    drop(full);

    let request = |scope: &str, outcome: &str, backend: &str| {
        format!(
            "tower_throttle_requests_total{{scope=\"{scope}\",outcome=\"{outcome}\",\
             backend=\"{backend}\"}}"
        )
    };
    let cost = |kind| format!("tower_throttle_cost_total{{scope=\"tokens\",kind=\"{kind}\"}}");
    let shadow = format!("{} 3", request("tried", "shadow_rejected", "redis"));
    let before = client.scrape(&shadow).await;
    for (scope, outcome, backend, count) in [
        ("tenant", "admitted", "redis", 2.0),
        ("tenant", "rejected", "redis", 3.0),
        ("tenant", "impossible", "redis", 1.0),
        ("login", "admitted", "redis", 2.0),
        ("tried", "admitted", "redis", 1.0),
        ("local", "admitted", "memory", 5.0),
        ("local", "rejected", "memory", 1.0),
        ("tokens", "admitted", "redis", 3.0),
        ("paced", "admitted", "redis", 4.0),
        ("slow", "cancelled", "redis", 1.0),
    ] {
        assert_eq!(before.value(&request(scope, outcome, backend)), count);
    }
    let overflow = "tower_throttle_overflow_total{scope=\"local\"}";
    assert_eq!(before.value(overflow), 3.0);
    assert_eq!(before.value(&cost("reserved")), 300.0);
    assert_eq!(before.value(&cost("settled")), 150.0);
    assert_eq!(before.value(&cost("refunded")), 330.0);
    let waited = before.value("tower_throttle_wait_seconds_count{scope=\"paced\"}");
    assert!((1.0..=3.0).contains(&waited), "{waited} of four waited");
    let sum = before.value("tower_throttle_wait_seconds_sum{scope=\"paced\"}");
    println!("{waited} of four waited, {sum:.3} s together");
    assert!(sum > 0.0 && sum < 30.0, "{sum}");
    assert_eq!(before.value("tower_throttle_scopes"), 1.0, "the local one");
    assert_eq!(before.value("tower_throttle_queue_length"), 0.0);

    server.kill9();
    assert_eq!(client.served("/login", 3).await, 0);
    assert_eq!(client.served("/tokens", 3).await, 3);
    assert!(matches!(redis.health(), Health::Degraded { .. }));
    let after = client.scrape("tower_throttle_degraded 1").await;
    assert_eq!(after.value(&request("login", "unavailable", "share")), 3.0);
    assert_eq!(after.value(&request("tokens", "admitted", "share")), 3.0);
    assert!(after.values_of("reason").contains("disconnected"));

    // Every metric, outcome, backend and kind occurred, and is documented.
    let expected = |text: &'static str| text.split(' ').collect::<BTreeSet<_>>();
    let outcomes = "admitted rejected impossible unavailable cancelled shadow_rejected";
    assert_eq!(after.values_of("outcome"), expected(outcomes));
    assert_eq!(after.values_of("backend"), expected("redis memory share"));
    assert_eq!(
        after.values_of("kind"),
        expected("reserved settled refunded")
    );
    let values = ["outcome", "backend", "kind"].map(|label| after.values_of(label));
    for value in values.iter().flatten() {
        assert!(DOCS.contains(&format!("`{value}`")), "{value}");
    }
    for (name, kind) in after.kinds() {
        let row = format!("| `{name}` | {kind} |");
        assert!(DOCS.contains(&row), "docs/metrics.md has no {row}");
        let help = format!("# HELP {name} ");
        assert!(after.0.contains(&help), "{name} is not described");
    }
    let documented: BTreeSet<_> = DOCS
        .lines()
        .filter_map(|line| line.strip_prefix("| `tower_throttle_")?.split('`').next())
        .collect();
    let exported = after.kinds();
    let exported: BTreeSet<_> = exported
        .iter()
        .map(|(name, _)| &name["tower_throttle_".len()..])
        .collect();
    assert_eq!(documented, exported, "touched by this test");

    // Every metric of a query exists.
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let names = after.names();
    for query in queries(&dashboard).into_iter().chain(rules()) {
        assert!(names_in(query).next().is_some(), "{query}");
        for name in names_in(query) {
            assert!(names.contains(name), "{name}, of {query}, in {names:?}");
        }
    }
    // And every metric is on a panel.
    for (name, _) in after.kinds() {
        assert!(DASHBOARD.contains(name), "{name} is on no panel");
    }

    for scrape in [&before, &after] {
        assert!(!scrape.0.contains(KEY), "a key is in\n{}", scrape.0);
    }
    let series = after.samples().count();
    println!("{series} lines, of {} metrics", after.kinds().len());
}

#[test]
fn dashboard_is_valid() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    assert!(dashboard["schemaVersion"].as_u64() >= Some(36));
    assert!(dashboard["title"].is_string() && dashboard["uid"].is_string());
    assert!(dashboard["id"].is_null(), "assigned by the import");
    let variables = dashboard["templating"]["list"].as_array().expect("a list");
    let datasource = &variables[0];
    assert_eq!(datasource["type"], "datasource");
    assert_eq!(datasource["query"], "prometheus");
    let uses = format!("${{{}}}", datasource["name"].as_str().expect("a name"));
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64()), "{}", panel["title"]);
        let parts = panel["targets"].as_array().expect("targets").iter();
        for part in parts.chain([panel]) {
            assert_eq!(part["datasource"]["uid"], uses.as_str());
        }
        let at = |side: &str| panel["gridPos"][side].as_u64().expect("a place");
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} lies on another", panel["title"]);
            }
        }
    }
    for query in queries(&dashboard).into_iter().chain(rules()) {
        for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
            let count = |c| query.chars().filter(|other| *other == c).count();
            assert_eq!(count(open), count(close), "{query}");
        }
    }
    assert_eq!(rules().len(), 4);
    assert_eq!(ALERTS.matches("- alert: ").count(), 4);
}

/// A dropped limiter leaves nothing in the gauges. A limiter created after another recorder was
/// removed counts for the new one.
#[test]
fn recorders_of_a_thread_come_and_go() {
    for round in 0..3 {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let limiter = Limiter::in_memory();
            for key in 0..10 {
                let permit = limiter.try_acquire(LOCAL.key(key));
                let permit = futures_util::FutureExt::now_or_never(permit);
                assert!(permit.is_some_and(|permit| permit.is_ok()));
            }
            let scrape = Scrape(handle.render());
            let admitted = "tower_throttle_requests_total{scope=\"local\",\
                            outcome=\"admitted\",backend=\"memory\"}";
            assert_eq!(scrape.value(admitted), 10.0, "round {round}");
            assert_eq!(scrape.value("tower_throttle_scopes"), 10.0);
        });
        let scrape = Scrape(handle.render());
        assert_eq!(scrape.value("tower_throttle_scopes"), 0.0);
    }
}

/// A handle that outlives its request counts for the same scope.
#[test]
fn late_settling_counts() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        let permit = Limiter::in_memory().try_acquire(TOKENS);
        let permit = futures_util::FutureExt::now_or_never(permit);
        let mut permit = permit.expect("at once").expect("full");
        let late: PermitHandle = permit.handle();
        permit.settle(100.5);
        late.settle(101.0);
        late.settle(101.0);
        permit.refund();
        late.settle(5_000.0);
    });
    let scrape = Scrape(handle.render());
    let cost = |kind| format!("tower_throttle_cost_total{{scope=\"tokens\",kind=\"{kind}\"}}");
    assert_eq!(scrape.value(&cost("settled")), 1.0, "in two halves");
    assert_eq!(scrape.value(&cost("refunded")), 101.0);
}

/// Counting allocates nothing once a thread has the handles of a scope.
#[test]
fn counting_allocates_nothing() {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let limiter = Limiter::in_memory();
        let request = |n: u64| {
            let permit = limiter.try_acquire(TENANT.key(n % 2));
            futures_util::FutureExt::now_or_never(permit).expect("at once")
        };
        for n in 0..10 {
            let _ = request(n);
        }
        let counted = allocation_counter::measure(|| {
            for n in 0..100 {
                assert!(request(n).is_err());
            }
        });
        assert_eq!(counted.count_total, 0, "of rejections");
        let wide = Quota::per_second(1e9).scope("wide");
        let admitted = || {
            let permit = limiter.try_acquire(&wide);
            let permit = futures_util::FutureExt::now_or_never(permit).expect("at once");
            permit.expect("plenty").settle(0.5);
        };
        admitted();
        let counted = allocation_counter::measure(|| (0..100).for_each(|_| admitted()));
        assert_eq!(counted.count_total, 0, "of admissions and settlements");
    });
}

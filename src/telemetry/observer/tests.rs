use super::*;

fn failure(kind: FailureKind) -> Failure {
    Failure::new(kind, "scripted")
}

#[test]
fn an_outage_changes_health_once_each_way() {
    let observer = Observer::new(Health::Redis, String::new());
    let mut changes = observer.changes();
    observer.redis_recovered().report(&observer);
    assert!(!changes.has_changed().expect("open"));
    observer
        .redis_failed(&failure(FailureKind::Timeout))
        .report(&observer);
    assert!(changes.has_changed().expect("open"));
    let first = changes.borrow_and_update().clone();
    observer
        .redis_failed(&failure(FailureKind::Disconnected))
        .report(&observer);
    assert!(!changes.has_changed().expect("open"), "one outage");
    assert_eq!(observer.health(), first);
    observer
        .redis_failed(&failure(FailureKind::Misconfigured))
        .report(&observer);
    let (
        Health::Degraded { since, .. },
        Health::Degraded {
            since: later,
            reason,
        },
    ) = (first, observer.health())
    else {
        panic!("not degraded");
    };
    assert_eq!((later, reason), (since, FailureKind::Misconfigured));
    observer.redis_recovered().report(&observer);
    assert_eq!(observer.health(), Health::Redis);
}

#[test]
fn fallbacks_are_counted_by_kind() {
    let observer = Observer::new(Health::Redis, String::new());
    for (n, kind) in FailureKind::ALL.into_iter().enumerate() {
        for _ in 0..=n {
            observer.fell_back(kind);
        }
    }
    for (n, kind) in FailureKind::ALL.into_iter().enumerate() {
        assert_eq!(observer.fallbacks_by(kind), n as u64 + 1);
    }
    assert_eq!(observer.fallbacks(), 28);
}

#[cfg(feature = "metrics")]
#[test]
fn fallbacks_are_counted_without_allocating() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        let observer = Observer::new(Health::Redis, String::new());
        observer.fell_back(FailureKind::Timeout);
        let counted = allocation_counter::measure(|| {
            for _ in 0..100 {
                observer.fell_back(FailureKind::Timeout);
            }
        });
        assert_eq!(counted.count_total, 0);
    });
    let counted = "tower_throttle_fallback_total{reason=\"timeout\"} 101";
    assert!(handle.render().contains(counted), "{}", handle.render());
}

#[test]
fn advice_is_logged_once_an_outage() {
    let observer = Observer::new(Health::Redis, String::new());
    let advised = || observer.advised().len();
    let misconfigured = |advice| Failure {
        advice,
        ..failure(FailureKind::Misconfigured)
    };
    observer.advise(&misconfigured(None));
    assert_eq!(advised(), 0);
    for _ in 0..2 {
        observer.advise(&misconfigured(Some("correct the URL")));
        observer.advise(&misconfigured(Some("correct the user")));
    }
    assert_eq!(advised(), 2);
    observer
        .redis_failed(&misconfigured(None))
        .report(&observer);
    observer.redis_recovered().report(&observer);
    assert_eq!(advised(), 0);
}

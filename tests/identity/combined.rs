//! Combinations of keys and of limits.

use super::*;

const DAY: Quota = Quota::per_day(10.0);
const USER: Scope = DAY.scope("user");
const SITE: Scope = DAY.scope("site");

#[derive(Clone)]
struct Plan(Quota);

fn names<Req>(extractor: &impl ScopeExtractor<Req>, req: &Req) -> Vec<String> {
    let scopes = extractor.extract(req);
    scopes.iter().map(|scope| scope.name().to_owned()).collect()
}

fn of(method: &str, user: &str) -> Request<()> {
    let request = Request::builder().method(method).header("x-user", user);
    request.body(()).unwrap()
}

#[tokio::test]
async fn tuple_of_keys_has_a_bucket_for_each_combination() {
    let limiter = Limiter::in_memory();
    let by = USER.by((method(), header("x-user"))).or_unlimited();
    for (method, user) in [("GET", "a"), ("GET", "b"), ("POST", "a")] {
        let scopes = by.extract(&of(method, user));
        limiter.try_acquire(&scopes).await.unwrap();
        assert_eq!(
            limiter
                .bucket(scopes.iter().next().unwrap())
                .level()
                .await
                .unwrap()
                .floor(),
            9.0
        );
    }
    assert_eq!(limiter.scopes_held(), 3);
    // It is named by its keys, which are not joined.
    let named = USER.keys(["GET", "a"]);
    assert_eq!(limiter.bucket(&named).level().await.unwrap().floor(), 9.0);
    assert_eq!(
        limiter.bucket(&USER.key("GET/a")).level().await.unwrap(),
        10.0
    );
    // Unknown methods share one bucket.
    let made_up = |name| by.extract(&of(name, "a")).iter().next().cloned();
    assert_eq!(made_up("BREW"), made_up("PROPFIND"));
    assert_ne!(made_up("BREW"), made_up("GET"));
    // Without one of its keys there is no combination.
    assert!(names(&by, &Request::new(())).is_empty());
}

#[test]
fn second_header_line_selects_no_new_bucket() {
    let by = USER.by(header("x-user")).or_unlimited();
    let keyed = |lines: &[&'static [u8]]| {
        let mut request = Request::new(());
        for line in lines {
            let line = HeaderValue::from_bytes(line).unwrap();
            request.headers_mut().append("x-user", line);
        }
        by.extract(&request).iter().next().cloned()
    };
    let ann = keyed(&[b"ann"]);
    assert_eq!(keyed(&[b"ann", b"ann"]), ann);
    assert_eq!(keyed(&[b"", b"ann"]), ann);
    assert_ne!(keyed(&[b"\xe4nn"]), ann);
    assert_ne!(keyed(&[b"\xe4nn"]), keyed(&[b"\\xe4nn"]), "escaped");
    let several = keyed(&[b"ann", b"1"]);
    assert_ne!(several, ann);
    for lines in [[b"ann".as_slice(), b"2"], [b"2", b"ann"], [b"ann", b"\xff"]] {
        assert_eq!(keyed(&lines), several);
    }
    assert_eq!(keyed(&[b""]), None);
    assert_eq!(keyed(&[]), None);
}

#[tokio::test]
async fn tuple_of_limits_takes_from_all_or_none() {
    let limiter = Limiter::in_memory();
    let both = (SITE, USER.by(header("x-user")).or_unlimited());
    assert!(ScopeExtractor::<Request<()>>::fixed(&both).is_none());
    assert_eq!(names(&both, &of("GET", "a")), ["site", "user"]);
    assert_eq!(names(&both, &Request::new(())), ["site"]);
    let user = USER.key("a");
    limiter.try_acquire(user.clone().cost(10.0)).await.unwrap();
    let rejected = limiter.try_acquire(both.extract(&of("GET", "a"))).await;
    assert_eq!(rejected.unwrap_err().scope(), "user");
    assert_eq!(
        limiter.bucket(&SITE).level().await.unwrap(),
        10.0,
        "nothing was taken"
    );
    limiter
        .try_acquire(both.extract(&of("GET", "b")))
        .await
        .unwrap();
    assert_eq!(limiter.bucket(&SITE).level().await.unwrap().floor(), 9.0);

    // A tuple of fixed scopes is fixed. A tuple may contain tuples.
    let fixed = (SITE, [USER, DAY.scope("third")], None::<Scope>);
    let fixed_scopes = ScopeExtractor::<()>::fixed(&fixed).expect("fixed scopes");
    assert_eq!(fixed_scopes.iter().count(), 3);
    assert_eq!(names(&((SITE, USER), fixed), &()).len(), 5);
}

#[test]
fn first_alternative_with_a_key_applies() {
    const WRITES: Scope = DAY.scope("writes");
    let client = USER
        .by(header("x-user"))
        .or(DAY.scope("peer").by(peer_ip()));
    let by = client.clone().or(SITE);
    let write = |req: &Request<()>| !req.method().is_safe();
    let mut request = of("GET", "a");
    assert_eq!(names(&by, &request), ["user"]);
    request.headers_mut().clear();
    assert_eq!(names(&by, &request), ["site"]);
    request.extensions_mut().insert(Peer(ip("192.0.2.1")));
    assert_eq!(names(&by, &request), ["peer"]);

    let writes = WRITES.when(write).or(by.clone());
    assert_eq!(names(&writes, &request), ["peer"]);
    assert_eq!(names(&writes, &of("POST", "a")), ["writes"]);
    assert!(names(&by.when(write), &request).is_empty());
    let some = when([SITE, WRITES], write);
    assert!(ScopeExtractor::fixed(&some).is_none());
    assert!(names(&some, &request).is_empty());
    assert_eq!(names(&some, &of("PUT", "a")), ["site", "writes"]);
}

#[tokio::test]
async fn plan_change_keeps_remaining_tokens() {
    let limiter = Limiter::in_memory();
    let by = USER
        .by(header("x-user"))
        .quota(|req: &Request<()>| Some(req.extensions().get::<Plan>()?.0))
        .or_unlimited();
    let of = |plan: Option<f64>| {
        let mut request = of("GET", "a");
        if let Some(tokens) = plan {
            request
                .extensions_mut()
                .insert(Plan(Quota::per_day(tokens)));
        }
        by.extract(&request).iter().next().cloned().unwrap()
    };
    assert_eq!(of(None).quota(), DAY);
    let level = async |scope: &Scope| limiter.bucket(scope).level().await.unwrap().floor();
    limiter
        .try_acquire(of(Some(100.0)).cost(40.0))
        .await
        .unwrap();
    assert_eq!(level(&of(Some(100.0))).await, 60.0);
    // A higher capacity does not add tokens.
    limiter
        .try_acquire(of(Some(1_000.0)).cost(1.0))
        .await
        .unwrap();
    assert_eq!(level(&of(Some(1_000.0))).await, 59.0);
    // A lower capacity discards the tokens above it, and a higher one does not restore them.
    limiter.try_acquire(of(None).cost(4.0)).await.unwrap();
    assert_eq!(level(&of(None)).await, 6.0);
    limiter
        .try_acquire(of(Some(100.0)).cost(7.0))
        .await
        .unwrap_err();
    limiter
        .try_acquire(of(Some(100.0)).cost(6.0))
        .await
        .unwrap();
    assert_eq!(level(&of(Some(100.0))).await, 0.0);
}

/// Whether a type is a limit, at compile time: an inherent constant takes precedence over a
/// trait's.
struct Probe<X>(std::marker::PhantomData<X>);

impl<X: ScopeExtractor<Request<()>>> Probe<X> {
    const IS_LIMIT: bool = true;
}

trait Otherwise {
    const IS_LIMIT: bool = false;
}

impl<X> Otherwise for Probe<X> {}

#[test]
fn chain_with_an_alternative_is_a_limit() {
    type User = By<Header>;
    type Client = By<ClientIp>;
    type Writes<X> = When<X, fn(&Request<()>) -> bool>;

    macro_rules! assert_limits {
        ($expected:literal: $($limit:ty,)+) => {
            $(assert_eq!(Probe::<$limit>::IS_LIMIT, $expected, stringify!($limit));)+
        };
    }
    assert_limits! { false:
        User,
        Or<User, Client>,
        Or<Or<User, Client>, User>,
        By<(ClientIp, Header)>,
        (Scope, User),
        (Or<User, Scope>, Client),
        Option<User>,
        std::sync::Arc<User>,
        Writes<User>,
        Or<Writes<Scope>, User>,
        Or<User, (Scope, Client)>,
        // The last one is never reached.
        Or<Or<User, Scope>, Scope>,
    }
    assert_limits! { true:
        Scope,
        Or<User, Scope>,
        Or<User>,
        Or<Or<User, Client>, Scope>,
        Or<User, Or<Client, Scope>>,
        Or<Or<User, Client>>,
        (Or<User>, Or<Client, Scope>),
        Writes<Or<User>>,
        Or<Writes<Or<User>>, Scope>,
        Or<User, Writes<Scope>>,
        Or<Or<User, Writes<Scope>>, Scope>,
    }
}

#[test]
fn or_unlimited_leaves_requests_without_a_key_unlimited() {
    let chain = || USER.by(header("x-user")).or(SITE.by(peer_ip()));
    let mut request = Request::new(());
    assert!(names(&chain().or_unlimited(), &request).is_empty());
    assert_eq!(names(&chain().or(SITE), &request), ["site"]);
    assert_eq!(names(&(SITE, chain().or_unlimited()), &request), ["site"]);
    request.extensions_mut().insert(Peer(ip("192.0.2.1")));
    assert_eq!(names(&chain().or_unlimited(), &request), ["site"]);
    assert_eq!(names(&chain().or_unlimited(), &of("GET", "a")), ["user"]);
}

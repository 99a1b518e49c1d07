use std::{fs, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::time::{Instant, sleep};
use tokio_rustls::rustls::crypto::CryptoProvider;

use crate::{
    FailureKind, Health, Limiter, Quota, Scope, redis::RedisTransport,
    verification::parity::support::RedisServer,
};

const API: Scope = Quota::per_day(1.0).burst(1e6).scope("api");
const LONG: Duration = Duration::from_secs(30);

/// A server with a port for these versions of TLS, and a certificate for `name`.
struct TlsServer {
    server: RedisServer,
    port: u16,
    /// The certificate of the authority, in DER.
    authority: Vec<u8>,
}

impl TlsServer {
    async fn start(name: &str, versions: &str) -> Self {
        let server = RedisServer::start().await;
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).expect("a certificate");
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new([name.to_owned()])
            .and_then(|params| params.signed_by(&key, &issuer))
            .expect("a certificate");
        let files = [
            ("tls-cert-file", certificate.pem()),
            ("tls-key-file", key.serialize_pem()),
            ("tls-ca-cert-file", authority.pem()),
        ];
        for (setting, pem) in files {
            let path = server.dir().join(setting);
            fs::write(&path, pem).expect("a directory of our own");
            let path = path.to_str().expect("text");
            server.config_set(setting, path).await;
        }
        server.config_set("tls-auth-clients", "no").await;
        server.config_set("tls-protocols", versions).await;
        let mut port = 0;
        for _ in 0..5 {
            let free = tokio::net::TcpListener::bind("127.0.0.1:0").await;
            let free = free.and_then(|socket| socket.local_addr());
            port = free.expect("a free port").port();
            let set = ["CONFIG", "SET", "tls-port", &port.to_string()];
            if server.try_command::<()>(&set).await.is_ok() {
                break;
            }
            port = 0;
        }
        assert_ne!(
            port,
            0,
            "redis-server does not speak TLS:\n{}",
            server.log()
        );
        Self {
            server,
            port,
            authority: authority.der().to_vec(),
        }
    }

    fn driver(&self, host: &str) -> RedisTransport {
        let url = format!("rediss://{host}:{}/2?protocol=resp3", self.port);
        RedisTransport::new(&url, LONG).expect("a URL")
    }
}

fn limiter(driver: RedisTransport) -> Limiter {
    let builder = Limiter::builder().redis_timeout(LONG);
    builder.connected_by(driver, 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_tls_versions_connect() {
    for versions in ["TLSv1.2", "TLSv1.3"] {
        for name in ["127.0.0.1", "localhost"] {
            let server = TlsServer::start(name, versions).await;
            let mut driver = server.driver(name);
            driver.trust(&server.authority);
            let limiter = limiter(driver);
            let permit = limiter.try_acquire(API).await.expect("plenty");
            assert!(!permit.is_degraded(), "{versions} {name}: {permit:?}");
            assert_eq!(limiter.health(), Health::Redis);
            let mut connection = server.server.connection().await;
            let _: () = redis::cmd("SELECT")
                .arg(2)
                .query_async(&mut connection)
                .await
                .expect("a database");
            let hashes: Vec<String> = redis::cmd("KEYS")
                .arg("throttle:v1|{#}*s:?")
                .query_async(&mut connection)
                .await
                .expect("an answer");
            let mut exists = false;
            for hash in hashes {
                exists |= redis::cmd("HEXISTS")
                    .arg(hash)
                    .arg("api")
                    .query_async::<bool>(&mut connection)
                    .await
                    .expect("an answer");
            }
            assert!(exists, "{versions} {name}");
            assert!(
                CryptoProvider::get_default().is_none(),
                "that is the application's"
            );
        }
    }
}

/// The limiter is degraded for this reason, and the failure contains these words.
async fn is_degraded(driver: RedisTransport, kind: FailureKind, words: [&str; 2]) {
    use crate::redis::connection::transport::Transport;
    let failure = driver.connect().await.err().expect("no connection");
    assert_eq!(failure.kind, kind, "{failure:?}");
    let text = format!("{} {:?}", failure.source, failure.advice);
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
    let limiter = limiter(driver);
    let start = Instant::now();
    let reason = loop {
        let permit = limiter.try_acquire(API).await.expect("plenty");
        assert!(permit.is_degraded());
        if let Health::Degraded { reason, .. } = limiter.health() {
            break reason;
        }
        assert!(start.elapsed() < LONG, "{:?}", limiter.health());
        sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(reason, kind);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_certificates_are_misconfigured() {
    let server = TlsServer::start("127.0.0.1", "TLSv1.3").await;
    let kind = FailureKind::Misconfigured;
    let unknown = server.driver("127.0.0.1");
    is_degraded(unknown, kind, ["UnknownIssuer", "not accepted"]).await;
    let mut other_name = server.driver("localhost");
    other_name.trust(&server.authority);
    is_degraded(other_name, kind, ["not valid for name", "host of the URL"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_without_tls_are_misconfigured() {
    // A port that replies with an error, and one that is closed.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut some = [0; 16];
            let _ = stream.read(&mut some).await;
            let _ = stream.write_all(b"-ERR unknown command\r\n").await;
        }
    });
    let driver = |port| {
        let url = format!("rediss://127.0.0.1:{port}");
        RedisTransport::new(&url, LONG).expect("a URL")
    };
    let kind = FailureKind::Misconfigured;
    is_degraded(driver(port), kind, ["corrupt", "does not use TLS"]).await;
    let closed = driver(1);
    is_degraded(closed, FailureKind::Disconnected, ["refused", ""]).await;
}

#[test]
fn invalid_hosts_and_fragments_are_errors() {
    for (url, word) in [
        ("rediss://127.0.0.1:1/#insecure", "#insecure"),
        ("rediss://a..b:1/", "valid DNS name"),
    ] {
        let error = RedisTransport::new(url, LONG).err().expect(url).to_string();
        assert!(error.contains(word), "{url}: {error}");
    }
}

//! The HTTP server of the metrics.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get, put},
};
use hyper_util::service::TowerToHyperService;
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::Value;
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};

use super::{
    pages::{self, About},
    text,
};
use crate::{health::Health, http};

const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Connections that are answered at the same time.
const CONNECTIONS: usize = 64;
/// Bytes of the longest question.
const MAX_BODY: usize = 4096;
const LOOPBACK_ONLY: &str =
    "settings can be changed only where --metrics-bind-address is an address of the loopback\n";

/// What the pages show.
pub struct Pages {
    pub registry: Registry,
    pub health: Health,
    pub about: About,
}

/// Serves the pages at an address, for as long as it is polled. One that is taken is
/// tried again and again (S110).
pub async fn serve(address: SocketAddr, pages: Pages) {
    let listener = http::listen("metrics", address).await;
    serve_on(listener, pages).await;
}

/// Serves the pages to whoever connects to a listener, for as long as it is polled.
pub async fn serve_on(listener: TcpListener, pages: Pages) {
    if let Ok(address) = listener.local_addr() {
        serve_at(listener, router(pages, address)).await;
    }
}

/// Serves `/healthz` and `/readyz` of an agent that stands by. The owner may
/// want the same address, so it comes first.
pub async fn serve_standby(address: SocketAddr) {
    sleep(2 * http::RETRY).await;
    let listener = http::listen("the pages of an agent that stands by", address).await;
    serve_at(listener, standby_router()).await;
}

async fn serve_at(listener: TcpListener, app: Router) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    http::serve(listener, connections, TowerToHyperService::new(app)).await;
}

/// The pages of the server at an address. Only processes of this node may change anything.
fn router(pages: Pages, address: SocketAddr) -> Router {
    let Pages {
        registry,
        health,
        about,
    } = pages;
    let about = Arc::new(about);
    let (alive, slis, status) = (health.clone(), health.clone(), health.clone());
    let (config, flags) = (Arc::clone(&about), Arc::clone(&about));
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route(
            "/metrics/slis",
            get(move || async move { pages::slis(&slis) }),
        )
        .route("/healthz", any(move || async move { is_alive(&alive) }))
        .route("/readyz", any(move || async move { is_ready(&health) }))
        .route("/proxyMode", any(|| async { NoSniff(pages::PROXY_MODE) }))
        .route("/configz", get(move || async move { json(&config.config) }))
        .route("/flagz", get(move || async move { flags.flagz() }))
        .route(
            "/statusz",
            get(move || async move { about.statusz(&status) }),
        )
        .with_state(Arc::new(registry));
    if address.ip().is_loopback() {
        router
            .route(
                "/debug/flags/v",
                put(|body: String| async move { pages::set_verbosity(&body) }),
            )
            .route(
                "/debug/flags/log-level",
                put(|body: String| async move { pages::set_level(&body) }),
            )
            .layer(DefaultBodyLimit::max(MAX_BODY))
    } else {
        router.route(
            "/debug/{*any}",
            any(|| async { (StatusCode::FORBIDDEN, LOOPBACK_ONLY) }),
        )
    }
}

/// Text that browsers must not take for something else.
struct NoSniff(&'static str);

impl IntoResponse for NoSniff {
    fn into_response(self) -> Response {
        ([(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], self.0).into_response()
    }
}

fn json(value: &Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, value.to_string()).into_response()
}

/// An agent is ready when Services work here: all of them are in force, in both families,
/// and the programs are on the devices.
fn is_ready(health: &Health) -> (StatusCode, String) {
    let reasons = health.is_unready();
    if reasons.is_empty() {
        return (StatusCode::OK, "ok".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n"))
}

/// An agent is alive while its loop turns: a restart mends nothing else.
fn is_alive(health: &Health) -> (StatusCode, String) {
    match health.dead_for() {
        None => (StatusCode::OK, "ok".to_owned()),
        Some(since) => {
            let since = since.as_secs();
            let text = format!("the reconcile loop has not turned for {since} s");
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

/// An agent that stands by is in good health: who restarts it makes it take
/// over. It is not the one that serves.
fn standby_router() -> Router {
    const STANDBY: &str = "another agent owns the bpf root, this one stands by";
    Router::new()
        .route("/healthz", any(|| async { "ok" }))
        .route(
            "/readyz",
            any(|| async { (StatusCode::SERVICE_UNAVAILABLE, STANDBY) }),
        )
}

/// In the format that is asked for: the older one if none is.
async fn metrics(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> Response {
    let mut newer = String::new();
    if let Err(error) = encode(&mut newer, &registry) {
        return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    let accepted = headers.get(header::ACCEPT);
    let accepted = accepted.and_then(|accepted| accepted.to_str().ok());
    let (kind, text) = if accepted.is_some_and(|it| it.contains(OPEN_METRICS)) {
        (OPEN_METRICS_TYPE, newer)
    } else {
        (TEXT_TYPE, text::of_open_metrics(&newer))
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use axum::http::Request;
    use proxy_common::family::{V4, V6};
    use rstest::rstest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower::ServiceExt as _;

    use super::*;
    use crate::{index::Index, metrics::Metrics, model::IpFamily};

    async fn get(address: SocketAddr, path: &str) -> String {
        ask(address, path, "*/*").await
    }

    async fn ask(address: SocketAddr, path: &str, accept: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connect");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("receive");
        answer
    }

    fn pages() -> (Metrics, Pages) {
        let (metrics, registry) = Metrics::new();
        let about = About {
            config: serde_json::json!({"tandem": {}}),
            flags: [("bpf-root".to_owned(), "/b".to_owned())].into(),
            started: (std::time::Instant::now(), std::time::SystemTime::UNIX_EPOCH),
        };
        let pages = Pages {
            registry,
            health: Health::default(),
            about,
        };
        (metrics, pages)
    }

    #[tokio::test]
    async fn metrics_are_served() {
        let listener = http::bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = listener.local_addr().expect("address");
        let (metrics, pages) = pages();
        metrics.service_changes(7);
        tokio::spawn(serve_on(listener, pages));

        let answer = get(address, "/healthz").await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok"),
            "{answer}"
        );
        let answer = get(address, "/metrics").await;
        assert!(answer.contains(TEXT_TYPE), "{answer}");
        assert!(answer.contains("service_changes_total 7"), "{answer}");
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        let answer = ask(address, "/metrics", accept).await;
        assert!(answer.contains(OPEN_METRICS_TYPE), "{answer}");
        assert!(answer.contains("service_changes_total 7"), "{answer}");
        assert!(answer.trim_end().ends_with("# EOF"), "{answer}");
    }

    /// The pages have kube-proxy's names (S114).
    #[rstest]
    #[case("/proxyMode", "\r\n\r\nebpf")]
    #[case("/configz", r#"{"tandem":{}}"#)]
    #[case("/flagz", "\nbpf-root=/b\n")]
    #[case("/statusz", "\nStarted: 1970-01-01T00:00:00Z\nUp: 0 hr 00 min 0")]
    #[case(
        "/metrics/slis",
        "kubernetes_healthcheck{name=\"proxy\",type=\"readyz\"} 0\n"
    )]
    #[tokio::test]
    async fn pages_have_kube_proxys_names(#[case] path: &str, #[case] expected: &str) {
        let listener = http::bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(serve_on(listener, pages().1));
        let answer = get(address, path).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains(expected), "{answer}");
    }

    async fn put(address: SocketAddr, path: &str, body: &str) -> String {
        let request = Request::put(path).body(body.to_owned()).expect("a request");
        let answer = router(pages().1, address).oneshot(request).await;
        let (head, body) = answer.expect("an answer").into_parts();
        let body = axum::body::to_bytes(body, usize::MAX)
            .await
            .expect("a body");
        format!(
            "{} {}",
            head.status.as_u16(),
            String::from_utf8_lossy(&body)
        )
    }

    /// Nobody but the node itself may change the log, and only to what there is.
    #[rstest]
    #[case(
        "192.0.2.1:1",
        "/debug/flags/v",
        "4",
        "403 settings can be changed only where"
    )]
    #[case("[2001:db8::1]:1", "/debug/flags/log-level", "debug", "403 ")]
    #[case("0.0.0.0:1", "/debug/flags/v", "4", "403 ")]
    #[case("[::]:1", "/debug/flags/v", "4", "403 ")]
    #[case(
        "127.0.0.1:1",
        "/debug/flags/v",
        "four",
        "400 \"four\" is no verbosity"
    )]
    #[case(
        "[::1]:1",
        "/debug/flags/log-level",
        "warning",
        "400 \"warning\" is no log level"
    )]
    #[case("127.0.0.1:1", "/debug/flags/v", "4", "500 this process has no log")]
    #[tokio::test]
    async fn the_log_is_changed_from_the_loopback_only(
        #[case] address: &str,
        #[case] path: &str,
        #[case] body: &str,
        #[case] expected: &str,
    ) {
        let answer = put(address.parse().expect("an address"), path, body).await;
        assert!(answer.starts_with(expected), "{answer}");
    }

    /// Ready means that Services work, in both families.
    #[tokio::test]
    async fn an_agent_is_ready_when_both_families_are_in_force() {
        let listener = http::bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = listener.local_addr().expect("address");
        let (_, pages) = pages();
        let health = pages.health.clone();
        tokio::spawn(serve_on(listener, pages));
        health.start([IpFamily::V4, IpFamily::V6]);
        let index = Index::new("node-1");
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.contains("IPv4: the first sync is missing"),
            "{answer}"
        );
        health.synced::<V4>(&index, &BTreeSet::new(), true);
        health.attached();
        let answer = get(address, "/readyz").await;
        assert!(
            answer.ends_with("IPv6: the first sync is missing"),
            "{answer}"
        );
        health.synced::<V6>(&index, &BTreeSet::new(), true);
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }

    /// A loop that stands still for a minute is dead.
    #[tokio::test(start_paused = true)]
    async fn a_loop_that_stands_still_is_dead() {
        let health = Health::default();
        health.start([IpFamily::V4, IpFamily::V6]);
        sleep(Duration::from_secs(59)).await;
        assert_eq!(is_alive(&health).0, StatusCode::OK);
        sleep(Duration::from_secs(1)).await;
        let (status, text) = is_alive(&health);
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "the reconcile loop has not turned for 60 s");
        health.turned();
        assert_eq!(is_alive(&health).0, StatusCode::OK);
    }

    #[tokio::test]
    async fn an_agent_that_stands_by_is_well_and_not_ready() {
        let listener = http::bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(serve_at(listener, standby_router()));
        let answer = get(address, "/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("another agent"), "{answer}");
    }

    /// Clients that went without a word must not take descriptors for ever.
    #[tokio::test(start_paused = true)]
    async fn connections_that_ask_nothing_are_closed() {
        let listener = http::bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(serve_on(listener, pages().1));
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connect");
        let closed = tokio::time::timeout(Duration::from_hours(24), stream.read_u8()).await;
        assert!(closed.is_ok_and(|read| read.is_err()), "still open");
    }
}

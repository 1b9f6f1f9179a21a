//! The HTTP server of the metrics.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::service::TowerToHyperService;
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};
use tracing::{info, warn};

use crate::{http, notice::Notice};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections that are answered at the same time.
const CONNECTIONS: usize = 64;
/// An address that is taken is tried again every 5 s (S110).
const BIND_RETRY: Duration = Duration::from_secs(5);

/// Serves `/metrics`, `/healthz` and `/readyz` for as long as it is polled. An address
/// that cannot be used yet is tried again and again.
pub async fn serve(address: SocketAddr, registry: Registry) {
    let app = router(registry);
    let listener = listen(address).await;
    info!(%address, "metrics are served");
    serve_at(listener, app).await;
}

/// Serves `/healthz` and `/readyz` of an agent that stands by. The owner may
/// want the same address, so it comes first.
pub async fn serve_standby(address: SocketAddr) {
    sleep(2 * BIND_RETRY).await;
    let listener = listen(address).await;
    serve_at(listener, standby_router()).await;
}

async fn serve_at(listener: TcpListener, app: Router) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    http::serve(listener, connections, TowerToHyperService::new(app)).await;
}

/// The pages of the server.
fn router(registry: Registry) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .with_state(Arc::new(registry))
}

/// An agent that stands by is in good health: who restarts it makes it take
/// over. It is not the one that serves.
fn standby_router() -> Router {
    const STANDBY: &str = "another agent owns the bpf root, this one stands by";
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(|| async { (StatusCode::SERVICE_UNAVAILABLE, STANDBY) }),
        )
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut failure = Notice::default();
    loop {
        match bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                let message = error.to_string();
                if failure.is_news(message.clone()) {
                    warn!(%address, "cannot listen for metrics, trying again: {message}");
                }
                sleep(BIND_RETRY).await;
            }
        }
    }
}

/// The unspecified address of either family means both families.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
        if let Ok(listener) = TcpListener::bind(both).await {
            return Ok(listener);
        }
    }
    TcpListener::bind(address).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::metrics::Metrics;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("receive");
        answer
    }

    #[tokio::test]
    async fn answers_on_both_pages() {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (metrics, registry) = Metrics::new();
        metrics.service_changes(7);
        tokio::spawn(serve_at(listener, router(registry)));

        let answer = get(address, "/healthz").await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok"),
            "{answer}"
        );
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        let answer = get(address, "/metrics").await;
        assert!(answer.contains(CONTENT_TYPE), "{answer}");
        assert!(answer.contains("service_changes_total 7"), "{answer}");
        assert!(answer.trim_end().ends_with("# EOF"), "{answer}");
    }

    #[tokio::test]
    async fn an_agent_that_stands_by_is_well_and_not_ready() {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.expect("bind");
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
        let listener = bind(([127, 0, 0, 1], 0).into()).await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (_, registry) = Metrics::new();
        tokio::spawn(serve_at(listener, router(registry)));
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connect");
        let closed = tokio::time::timeout(Duration::from_hours(24), stream.read_u8()).await;
        assert!(closed.is_ok_and(|read| read.is_err()), "still open");
    }

    /// S110: the unspecified address serves both families.
    #[tokio::test]
    async fn the_unspecified_address_is_both_families() {
        let listener = bind(([0, 0, 0, 0], 0).into()).await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("IPv4");
    }
}

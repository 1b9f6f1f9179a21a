//! The proxy's own health check, which load balancers ask of a node for Services with
//! `externalTrafficPolicy: Cluster` (S105–S109).

use std::{
    collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, time::SystemTime,
};

use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    service::service_fn,
};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::{net::TcpListener, sync::Semaphore};

use super::{Health, state::Report};
use crate::{
    http,
    metrics::{HealthPage, Metrics},
};

/// Connections that are answered at the same time.
const CONNECTIONS: usize = 512;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyBody>,
    /// Not kube-proxy's: what is not as it should be, in plain words.
    reasons: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

/// The answer of one page to any request, whatever its method.
fn answer(page: HealthPage, report: Report, now: SystemTime) -> Response<String> {
    let healthy = match page {
        HealthPage::Healthz => report.is_healthy(),
        HealthPage::Livez => report.is_live,
    };
    let node = match page {
        HealthPage::Healthz => Some(report.node),
        // Who restarts a proxy because of its Node gains nothing.
        HealthPage::Livez => None,
    };
    let is_ok = healthy && node.iter().flatten().next().is_none();
    // Whoever is well is up to date (S107).
    let last_updated = if is_ok {
        Some(now)
    } else {
        report.last_updated
    };
    let node_eligible = node.as_ref().map(Option::is_none);
    let families = report.families.into_iter().map(|(family, report)| {
        let body = FamilyBody {
            last_updated: time(Some(report.last_updated)),
            healthy: report.is_healthy,
        };
        (family.name(), body)
    });
    let body = Body {
        last_updated: time(last_updated),
        current_time: time(Some(now)),
        node_eligible,
        healthy,
        status: families.collect(),
        reasons: node.into_iter().flatten().chain(report.reasons).collect(),
    };
    // Plain fields, into memory: that cannot fail.
    let mut response = Response::new(serde_json::to_string(&body).unwrap_or_default());
    *response.status_mut() = if is_ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A time as Go writes it: RFC 3339 with nanoseconds. One that never came is Go's zero.
fn time(time: Option<SystemTime>) -> String {
    let time = time.and_then(|time| Timestamp::try_from(time).ok());
    time.map_or_else(
        || "0001-01-01T00:00:00Z".to_owned(),
        |time| time.to_string(),
    )
}

fn not_found() -> Response<String> {
    let mut response = Response::new("404 page not found\n".to_owned());
    *response.status_mut() = StatusCode::NOT_FOUND;
    let headers = response.headers_mut();
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(CONTENT_TYPE, text);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Answers at an address, for as long as it is polled. One that is taken is tried again
/// and again (S110).
pub async fn serve(address: SocketAddr, health: Health, metrics: Metrics) {
    let listener = http::listen("health checks", address).await;
    serve_on(listener, health, metrics).await;
}

/// Answers whoever connects to a listener, for as long as it is polled.
pub async fn serve_on(listener: TcpListener, health: Health, metrics: Metrics) {
    let respond = service_fn(move |request: Request<Incoming>| {
        let answer = respond(request.uri().path(), &health, &metrics);
        async { Ok::<_, Infallible>(answer) }
    });
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    http::serve(listener, connections, respond).await;
}

fn respond(path: &str, health: &Health, metrics: &Metrics) -> Response<String> {
    let page = match path {
        "/healthz" => HealthPage::Healthz,
        "/livez" => HealthPage::Livez,
        _ => return not_found(),
    };
    let now = SystemTime::now();
    let answer = answer(page, health.report(now), now);
    metrics.health_answer(page, answer.status().as_u16());
    answer
}

#[cfg(test)]
mod tests;

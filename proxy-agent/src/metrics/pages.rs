//! The pages for people beside the metrics (S114), under kube-proxy's names.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant, SystemTime},
};

use axum::http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::{
    health::Health,
    telemetry::{self, LogError},
};

/// The word of `/proxyMode`: none of kube-proxy's, whose users would look for its rules.
pub const PROXY_MODE: &str = "ebpf";
/// All pages, as `/statusz` lists them.
pub const PATHS: [&str; 8] = [
    "/configz",
    "/flagz",
    "/healthz",
    "/metrics",
    "/metrics/slis",
    "/proxyMode",
    "/readyz",
    "/statusz",
];
const FOR_PEOPLE: &str = "Warning: This page is for people, and its form may change.";

/// What the pages tell of this process.
#[derive(Clone, Debug)]
pub struct About {
    pub config: Value,
    pub flags: BTreeMap<String, String>,
    pub started: (Instant, SystemTime),
}

impl About {
    pub fn flagz(&self) -> String {
        let mut page = format!("tandem flags\n{FOR_PEOPLE}\n\n");
        for (name, value) in &self.flags {
            let _ = writeln!(page, "{name}={value}");
        }
        page
    }

    pub fn statusz(&self, health: &Health) -> String {
        let (instant, time) = self.started;
        let started = Timestamp::try_from(time).map_or_else(|_| String::new(), |it| it.to_string());
        let unready = health.is_unready();
        let state = if unready.is_empty() {
            "Services work here".to_owned()
        } else {
            unready.join("; ")
        };
        format!(
            "tandem statusz\n{FOR_PEOPLE}\n\n\
             Started: {started}\nUp: {}\nBinary version: {}\nProxy mode: {PROXY_MODE}\n\
             State: {state}\nPaths: {}\n",
            up(instant.elapsed()),
            env!("CARGO_PKG_VERSION"),
            PATHS.join(" "),
        )
    }
}

/// A duration as kube-proxy's page has it.
fn up(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours} hr {minutes:02} min {:02} sec", seconds % 60)
}

/// The service level indicators of a component, as Kubernetes' components have them.
pub fn slis(health: &Health) -> String {
    let mut page = String::from(
        "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
         # TYPE kubernetes_healthcheck gauge\n",
    );
    let checks = [
        ("healthz", health.dead_for().is_none()),
        ("readyz", health.is_unready().is_empty()),
    ];
    for (kind, is_well) in checks {
        let value = u8::from(is_well);
        let _ = writeln!(
            page,
            "kubernetes_healthcheck{{name=\"proxy\",type=\"{kind}\"}} {value}"
        );
    }
    page
}

/// Sets the level of the log by kube-proxy's verbosity.
pub fn set_verbosity(body: &str) -> (StatusCode, String) {
    let Ok(verbosity) = body.trim().parse() else {
        let text = format!("{:?} is no verbosity; expected a number\n", body.trim());
        return (StatusCode::BAD_REQUEST, text);
    };
    set_level(telemetry::level_of_verbosity(verbosity))
}

/// Sets the level or filter of the log.
pub fn set_level(body: &str) -> (StatusCode, String) {
    let level = body.trim();
    match telemetry::change(level) {
        Ok(()) => {
            tracing::info!("the log level is {level} now");
            (
                StatusCode::OK,
                format!("successfully set the log level to {level}\n"),
            )
        }
        Err(error @ (LogError::Level(_) | LogError::Filter { .. })) => {
            (StatusCode::BAD_REQUEST, format!("{error}\n"))
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

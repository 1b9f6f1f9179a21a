//! What runs in the background while an agent owns the datapath: HTTP servers, and what is
//! written to the API server.

use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::{
    cli,
    config::{Config, configz},
    events::{Event, Recorder},
    health::{
        self, Health, proxy,
        serve::{Addresses, Reports},
    },
    http,
    metrics::{
        Metrics,
        pages::About,
        serve::{self, Pages},
    },
};

/// Starts the servers of health checks and metrics in the present runtime, and what is
/// written to the API server. Fails only if an address that is taken is to be fatal.
pub(super) async fn start(
    config: &Config,
    registry: Registry,
    health: &Health,
    metrics: &Metrics,
) -> anyhow::Result<Recorder> {
    if config.source.has_nodes() {
        health.need_node(&config.node.name);
    }
    let recorder = record_events(config);
    start_servers(config, registry, health, metrics, &recorder).await?;
    recorder.record(Event::starting());
    remove_taint(config, health);
    Ok(recorder)
}

/// Opens and closes health check ports as Services and addresses change.
pub(super) fn serve_health_check_ports(
    config: &Config,
    health: &Health,
    recorder: Recorder,
    addresses: watch::Receiver<Addresses>,
) {
    let reports = Reports {
        health: health.clone(),
        node: config.node.name.clone(),
        recorder,
    };
    tokio::spawn(health::serve::serve(reports, addresses));
}

/// Writes events, where there is an API server.
fn record_events(config: &Config) -> Recorder {
    let (recorder, events) = Recorder::new();
    let (source, node) = (config.source.clone(), config.node.name.clone());
    tokio::spawn(async move { source.write_events(&node, events).await });
    recorder
}

/// Removes the taint that keeps pods away, once Services work here.
fn remove_taint(config: &Config, health: &Health) {
    if let Some(key) = config.remove_taint.clone() {
        let (source, node) = (config.source.clone(), config.node.name.clone());
        let health = health.clone();
        tokio::spawn(async move { source.remove_taint(&node, &key, &health).await });
    }
}

/// An address that is taken and fatal is an event (S93, S110).
async fn start_servers(
    config: &Config,
    registry: Registry,
    health: &Health,
    metrics: &Metrics,
    recorder: &Recorder,
) -> anyhow::Result<()> {
    let servers = config.servers;
    let pages = Pages {
        registry,
        health: health.clone(),
        about: About {
            config: configz::configz(config),
            flags: cli::flags(std::env::args_os()),
            started: (Instant::now(), SystemTime::now()),
        },
    };
    if let Some(address) = servers.health {
        let (health, metrics) = (health.clone(), metrics.clone());
        if servers.hard_fail {
            let listener = http::bind(address)
                .with_context(|| format!("listen for health checks at {address}"));
            let listener = or_event(listener, "FailedToStartProxierHealthcheck", recorder).await?;
            tokio::spawn(proxy::serve_on(listener, health, metrics));
        } else {
            tokio::spawn(proxy::serve(address, health, metrics));
        }
    }
    if let Some(address) = servers.metrics {
        if servers.hard_fail {
            let listener =
                http::bind(address).with_context(|| format!("listen for metrics at {address}"));
            let listener = or_event(listener, "FailedToStartMetricServer", recorder).await?;
            tokio::spawn(serve::serve_on(listener, pages));
        } else {
            tokio::spawn(serve::serve(address, pages));
        }
    }
    Ok(())
}

async fn or_event<T>(
    result: anyhow::Result<T>,
    reason: &'static str,
    recorder: &Recorder,
) -> anyhow::Result<T> {
    if let Err(error) = &result {
        recorder.record(Event::failed_to_start(reason, error));
        recorder.flush().await;
    }
    result
}

//! The HTTP servers of an agent that owns the datapath.

use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use prometheus_client::registry::Registry;

use crate::{
    cli,
    config::{Config, configz},
    health::{Health, proxy},
    http,
    metrics::{
        Metrics,
        pages::About,
        serve::{self, Pages},
    },
};

/// Starts the servers of health checks and metrics in the present runtime. Fails only if
/// an address that is taken is to be fatal.
pub(super) fn start(
    config: &Config,
    registry: Registry,
    health: &Health,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    if config.source.has_nodes() {
        health.need_node(&config.node.name);
    }
    start_servers(config, registry, health, metrics)
}

/// An address that is taken may be fatal (S110).
fn start_servers(
    config: &Config,
    registry: Registry,
    health: &Health,
    metrics: &Metrics,
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
                .with_context(|| format!("listen for health checks at {address}"))?;
            tokio::spawn(proxy::serve_on(listener, health, metrics));
        } else {
            tokio::spawn(proxy::serve(address, health, metrics));
        }
    }
    if let Some(address) = servers.metrics {
        if servers.hard_fail {
            let listener =
                http::bind(address).with_context(|| format!("listen for metrics at {address}"))?;
            tokio::spawn(serve::serve_on(listener, pages));
        } else {
            tokio::spawn(serve::serve(address, pages));
        }
    }
    Ok(())
}

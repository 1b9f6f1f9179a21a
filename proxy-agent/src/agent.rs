//! `proxy-agent run`: puts the parts together.

use std::sync::Arc;

use anyhow::Context as _;
use proxy_common::family::{V4, V6};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    config::Config,
    dataplane::{
        counters::Counters,
        load::{self, LoadOptions},
        log,
        mapped::Access,
        pins::Pins,
        tables::{KernelFamily, KernelTables},
    },
    health,
    keeper::{self, Keeper},
    metrics::{Metrics, serve},
    program::Programmer,
    reconcile::Reconciler,
    sockets::Sockets,
    source, system, telemetry,
};

/// Runs until SIGTERM or SIGINT. The datapath stays as it is then (P4).
pub async fn run(config: Config) -> anyhow::Result<()> {
    system::require_privileges()?;
    system::require_kernel()?;
    // Before anything is changed on this node.
    config.source.check().await?;
    system::mount_bpf(&config.bpf_root)?;
    let pins = Pins::new(&config.bpf_root);
    let mut loaded = load::load(&LoadOptions {
        pins: pins.clone(),
        sizes: config.sizes,
        log_level: telemetry::level(),
    })?;
    info!(
        node = config.node.name,
        bpf_root = %config.bpf_root.display(),
        adopted = loaded.adopted,
        "datapath loaded"
    );
    let (metrics, mut registry) = Metrics::new();
    let counters = Counters::open(&pins).context("open the datapath's counters")?;
    registry.register_collector(Box::new(counters));

    let departures = Arc::new(Notify::new());
    let reconciler = Reconciler::new(config.node.name.clone(), config.intervals, metrics.clone())
        .with_external_ips(config.node.feature_gates.service_external_ips)
        .with_family::<V4>(programmer::<V4>(&pins, &departures)?)
        .with_family::<V6>(programmer::<V6>(&pins, &departures)?);
    log::forward(&mut loaded.ebpf);
    let mut keeper = Keeper::start(
        loaded,
        pins.clone(),
        keeper::Options {
            mode: config.attach,
            node: config.node.clone(),
            audit: config.intervals.audit,
        },
        keeper::ClusterNews {
            node: reconciler.node(),
            service_ranges: reconciler.service_ranges(),
        },
        metrics.clone(),
    )
    .await?;

    let sockets = Sockets::start(keeper.loaded(), &pins, &config.sockets, metrics.clone())?;

    let shutdown = CancellationToken::new();
    stop_on_signal(shutdown.clone())?;
    tokio::spawn(health::serve::serve(reconciler.health(), keeper.listen()));
    if let Some(address) = config.metrics {
        tokio::spawn(serve::serve(address, registry));
    }
    let (sender, changes) = source::channel();
    let sockets = sockets.run(departures, &config.source, &config.node.name);
    let source = config
        .source
        .clone()
        .run(&config.node.name, sender, metrics);
    tokio::select! {
        ended = reconciler.run(changes, shutdown) => {
            info!(?ended, "stopping; forwarding goes on");
            Ok(())
        }
        () = keeper.run() => Ok(()),
        () = sockets => Ok(()),
        result = run_source(source) => result,
    }
}

/// A source only ends by failing at the start; one that ends otherwise leaves
/// the reconciler to finish.
async fn run_source(
    source: impl Future<Output = Result<(), source::SourceError>>,
) -> anyhow::Result<()> {
    source.await?;
    std::future::pending().await
}

fn programmer<F: KernelFamily>(
    pins: &Pins,
    departures: &Arc<Notify>,
) -> anyhow::Result<Programmer<F, KernelTables<F>>> {
    let tables = KernelTables::open(pins, Access::Write)?;
    Programmer::new(tables.announcing(Arc::clone(departures)))
}

fn stop_on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    });
    Ok(())
}

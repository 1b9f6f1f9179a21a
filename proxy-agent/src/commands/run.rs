//! `proxy-agent run`: puts the parts together.

use std::{pin::pin, sync::Arc};

use anyhow::Context as _;
use proxy_common::family::{V4, V6};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};
use tracing::{info, warn};

use crate::{
    config::Config,
    dataplane::{
        counters::Counters,
        growth,
        load::{self, LoadOptions},
        log,
        mapped::Access,
        pins::Pins,
        tables::{KernelFamily, KernelTables},
    },
    health,
    metrics::{Metrics, serve},
    node::{self, NodeController},
    ownership::{Candidate, Loss, Name, Ownership},
    predecessors::Predecessors,
    reconcile::Reconciler,
    socket_lb::Sockets,
    source, sys,
    table_sync::TableSync,
    telemetry,
};

/// Runs until SIGTERM or SIGINT. The datapath stays as it is then (P4). While
/// a newer agent is the owner of the bpf root, this one stands by.
pub fn run(config: &Config) -> anyhow::Result<()> {
    sys::capabilities::require_privileges()?;
    sys::kernel::require_kernel()?;
    let mut stop = in_runtime(async {
        // Before anything is changed on this node.
        config.source.check().await?;
        StopSignals::listen()
    })?;
    sys::filesystems::mount_bpf(&config.bpf_root)?;
    let name = Name::of_this_process("run", &config.node.name);
    let candidate = Candidate::new(&config.bpf_root, name);
    let mut next = in_runtime(async {
        tokio::select! {
            owner = candidate.take_over() => Ok(Some(owner?)),
            () = stop.received() => Ok(None),
        }
    })?;
    while let Some(ownership) = next {
        let ended = in_runtime(serve(config, &ownership, &mut stop))?;
        drop(ownership);
        next = match ended {
            Ended::Stopped => None,
            Ended::Uprooted => {
                warn!(
                    "{} was removed by someone else, starting over",
                    config.bpf_root.display()
                );
                Some(in_runtime(async { Ok(candidate.take_over().await?) })?)
            }
            Ended::Superseded => in_runtime(stand_by(config, &candidate, &mut stop))?,
        };
    }
    Ok(())
}

/// Runs to the end with a runtime of its own: no task outlives it, so nobody
/// writes, or listens on a port, who is not the owner any more.
fn in_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    // Dropping it would wait for a manifest that is being read.
    runtime.shutdown_background();
    done
}

/// Waits until this agent is the owner again; returns `None` if it is asked to end.
async fn stand_by(
    config: &Config,
    candidate: &Candidate,
    stop: &mut StopSignals,
) -> anyhow::Result<Option<Ownership>> {
    if let Some(address) = config.metrics {
        tokio::spawn(serve::serve_standby(address));
    }
    tokio::select! {
        ownership = candidate.stand_by() => {
            let ownership = ownership?;
            info!("{}", match ownership {
                Some(_) => "the bpf root has no owner any more, taking over again",
                None => "`proxy-agent cleanup` has removed the datapath, stopping",
            });
            Ok(ownership)
        }
        () = stop.received() => {
            info!("stopping; another agent keeps the datapath");
            Ok(None)
        }
    }
}

/// The reason why an owner stops writing.
enum Ended {
    /// It was asked to end.
    Stopped,
    /// A newer agent takes over.
    Superseded,
    /// The bpf root is gone, and with it all that was pinned there.
    Uprooted,
}

/// Keeps the datapath for as long as this agent is the owner.
async fn serve(
    config: &Config,
    ownership: &Ownership,
    stop: &mut StopSignals,
) -> anyhow::Result<Ended> {
    let pins = Pins::new(&config.bpf_root);
    let sizes = if config.keeps_larger_flow_tables {
        growth::keeping_larger_flow_tables(&pins, config.sizes)
    } else {
        config.sizes
    };
    let mut loaded = load::load(&LoadOptions {
        pins: pins.clone(),
        sizes,
        masquerade_ports: config.masquerade_ports,
        log_level: telemetry::level(),
    })?;
    info!(
        node = config.node.name,
        bpf_root = %config.bpf_root.display(),
        adopted = loaded.adopted,
        flow_table_size = loaded.flows,
        "datapath loaded"
    );
    let (metrics, mut registry) = Metrics::new();
    let counters = Counters::open(&pins).context("open the datapath's counters")?;
    registry.register_collector(Box::new(counters));

    let predecessors = Predecessors::find(&pins);
    let removed_backends = Arc::new(Notify::new());
    let reconciler = Reconciler::new(config.node.name.clone(), config.intervals, metrics.clone())
        .with_external_ips(config.node.feature_gates.service_external_ips)
        .with_family::<V4>(table_sync::<V4>(&pins, &removed_backends)?)
        .with_family::<V6>(table_sync::<V6>(&pins, &removed_backends)?);
    log::forward(&mut loaded.ebpf);
    let news = node::NodeInputs {
        node: reconciler.node(),
        service_ranges: reconciler.service_ranges(),
    };
    let (health, mut in_force) = (reconciler.health(), reconciler.in_force());
    let (sender, changes) = source::channel();
    let source = config.source.clone();
    let source = source.run(&config.node.name, sender, metrics.clone());
    let mut reconciling = pin!(reconciler.run(changes));
    let mut source = pin!(run_source(source));
    if !predecessors.is_empty() {
        tokio::select! {
            biased;
            ended = must_end(stop, ownership) => return Ok(ended),
            () = &mut reconciling => return Ok(Ended::Stopped),
            result = &mut source => return result.map(|()| Ended::Stopped),
            _ = in_force.wait_for(|in_force| *in_force) => predecessors.carry_flows_over(),
        }
    }
    let options = node::Options {
        mode: config.attach,
        node: config.node.clone(),
        audit: config.intervals.audit,
    };
    let controller = NodeController::start(loaded, pins.clone(), options, news, metrics.clone());
    let mut controller = controller.await?;
    growth::finish(&pins);
    let sockets = Sockets::start(controller.loaded(), &pins, &config.sockets, metrics)?;
    controller.replace(predecessors);

    tokio::spawn(health::serve::serve(health, controller.listen()));
    if let Some(address) = config.metrics {
        tokio::spawn(serve::serve(address, registry));
    }
    let sockets = sockets.run(removed_backends, &config.source, &config.node.name);
    let ended = tokio::select! {
        biased;
        ended = must_end(stop, ownership) => ended,
        () = reconciling => Ended::Stopped,
        () = controller.run() => Ended::Stopped,
        () = sockets => Ended::Stopped,
        result = source => return result.map(|()| Ended::Stopped),
    };
    match ended {
        Ended::Stopped => controller.leave().await,
        Ended::Superseded | Ended::Uprooted => {}
    }
    Ok(ended)
}

/// Waits until the agent is asked to end, or must not be the owner any more.
async fn must_end(stop: &mut StopSignals, ownership: &Ownership) -> Ended {
    tokio::select! {
        () = stop.received() => Ended::Stopped,
        lost = ownership.is_lost() => match lost {
            Loss::Wanted => Ended::Superseded,
            Loss::Removed => Ended::Uprooted,
        },
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

fn table_sync<F: KernelFamily>(
    pins: &Pins,
    removed_backends: &Arc<Notify>,
) -> anyhow::Result<TableSync<F, KernelTables<F>>> {
    let tables = KernelTables::open(pins, Access::Write)?;
    TableSync::new(tables.announcing(Arc::clone(removed_backends)))
}

/// The signals that stop the agent. Created once, so that none is lost between two
/// runtimes.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

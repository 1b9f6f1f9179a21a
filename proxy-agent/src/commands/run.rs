//! `proxy-agent run`: puts the parts together.

use std::{ops::ControlFlow, pin::pin, rc::Rc, sync::Arc};

use anyhow::Context as _;
use proxy_common::family::{V4, V6};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
};
use tracing::{info, warn};

use crate::{
    config::Config,
    dataplane::{
        counters::Counters,
        growth,
        load::{self, LoadOptions, Loaded, Sizes},
        log,
        mapped::Access,
        pins::Pins,
        tables::{KernelFamily, KernelTables},
    },
    health::{self, serve::Addresses},
    metrics::{Metrics, serve},
    node::{self, NodeController},
    ownership::{Candidate, Loss, Name, Ownership},
    predecessors::Predecessors,
    reconcile::{Reconciler, growth::Growth},
    socket_lb::Sockets,
    source, sys,
    table_sync::TableSync,
    takeover::Takeover,
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
    let mut options = LoadOptions {
        pins: pins.clone(),
        sizes: growth::keeping_larger(&pins, config.sizes, config.fixed_sizes),
        masquerade_ports: config.masquerade_ports,
        log_level: telemetry::level(),
    };
    let loaded = load::load(&options)?;
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
    // Before programs are attached, which would take flows from a kube-proxy.
    let is_fresh = !loaded.adopted && predecessors.is_empty();
    let mut takeover = Takeover::start(&pins, is_fresh)?;
    let growth = Rc::new(Growth::new(
        options.sizes,
        config.fixed_sizes,
        config.memory_for_services,
    ));
    let removed_backends = Arc::new(Notify::new());
    let reconciler = Reconciler::new(config.node.name.clone(), config.intervals, metrics.clone())
        .with_external_ips(config.node.feature_gates.service_external_ips)
        .with_growth(&growth)
        .with_family::<V4>(table_sync::<V4>(&pins, &removed_backends)?)
        .with_family::<V6>(table_sync::<V6>(&pins, &removed_backends)?);
    let inputs = node::NodeInputs {
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
    let listen = watch::Sender::default();
    let start = |loaded, predecessors| {
        let (listen, inputs) = (listen.clone(), inputs.clone());
        start_on_node(loaded, predecessors, config, listen, inputs, &metrics)
    };
    let (mut controller, mut sockets) = start(loaded, predecessors).await?;

    tokio::spawn(health::serve::serve(health, listen.subscribe()));
    if let Some(address) = config.metrics {
        tokio::spawn(serve::serve(address, registry));
    }
    loop {
        let sockets_run = sockets.run(
            Arc::clone(&removed_backends),
            &config.source,
            &config.node.name,
        );
        let next = tokio::select! {
            biased;
            ended = must_end(stop, ownership) => ControlFlow::Break(ended),
            () = &mut reconciling => ControlFlow::Break(Ended::Stopped),
            () = controller.run() => ControlFlow::Break(Ended::Stopped),
            () = sockets_run => ControlFlow::Break(Ended::Stopped),
            () = takeover.run(in_force.clone()) => ControlFlow::Break(Ended::Stopped),
            result = &mut source => return result.map(|()| Ended::Stopped),
            sizes = growth.wanted() => ControlFlow::Continue(sizes),
        };
        match next {
            ControlFlow::Break(ended) => {
                if matches!(ended, Ended::Stopped) {
                    controller.leave().await;
                }
                return Ok(ended);
            }
            // Nobody but the servers of health checks and metrics runs until the new
            // tables and programs are in place.
            ControlFlow::Continue(sizes) => {
                let loaded = load_larger(&mut options, sizes).await?;
                growth.exchanged(options.sizes);
                (controller, sockets) = start(loaded, Predecessors::find(&pins)).await?;
            }
        }
    }
}

/// Puts the programs in place on the node's devices and cgroups.
async fn start_on_node(
    mut loaded: Loaded,
    predecessors: Predecessors,
    config: &Config,
    listen: watch::Sender<Addresses>,
    inputs: node::NodeInputs,
    metrics: &Metrics,
) -> anyhow::Result<(NodeController, Sockets)> {
    let pins = Pins::new(&config.bpf_root);
    log::forward(&mut loaded.ebpf);
    let options = node::Options {
        mode: config.attach,
        node: config.node.clone(),
        audit: config.intervals.audit,
        listen,
    };
    let controller = NodeController::start(loaded, pins.clone(), options, inputs, metrics.clone());
    let mut controller = controller.await?;
    growth::finish(&pins);
    let sockets = Sockets::start(controller.loaded(), &pins, &config.sockets, metrics.clone())?;
    controller.replace(predecessors);
    Ok((controller, sockets))
}

/// Loads the programs on larger tables, or as they were where that fails. Servers go on
/// meanwhile.
async fn load_larger(options: &mut LoadOptions, sizes: Sizes) -> anyhow::Result<Loaded> {
    let larger = LoadOptions {
        sizes,
        ..options.clone()
    };
    let loading = larger.clone();
    match tokio::task::spawn_blocking(move || load::load(&loading)).await? {
        Ok(loaded) => {
            *options = larger;
            Ok(loaded)
        }
        Err(error) => {
            let error = anyhow::Error::new(error);
            warn!("the tables of Services cannot be made larger, going on as before: {error:#}");
            Ok(load::load(options)?)
        }
    }
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
    let (pins, removed_backends) = (pins.clone(), Arc::clone(removed_backends));
    let open = move || {
        let tables = KernelTables::open(&pins, Access::Write)?;
        Ok(tables.announcing(Arc::clone(&removed_backends)))
    };
    Ok(TableSync::new(open()?)?.reopening(open))
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

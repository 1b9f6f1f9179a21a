//! `proxy-agent run`: puts the parts together.

mod background;

use std::{ops::ControlFlow, path::Path, pin::pin, rc::Rc, sync::Arc, time::Duration};

use anyhow::Context as _;
use proxy_common::family::{V4, V6};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
};
use tracing::{debug, info, warn};

use crate::{
    cli::layers::{Configuration, Effective},
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
    health::{
        Health,
        serve::Addresses,
        state::{Condition, Subject},
    },
    last_state::Store,
    metrics::{Metrics, serve},
    node::{self, NodeController},
    ownership::{Candidate, Loss, Name, Ownership},
    predecessors::Predecessors,
    reconcile::{Reconciler, growth::Growth},
    socket_lb::Sockets,
    source::{self, Source},
    sys::{
        self,
        mount_namespace::{self, Lifetime},
    },
    table_sync::TableSync,
    takeover::Takeover,
    telemetry,
};

/// The configuration's files are read again in such intervals.
const READ_CONFIGURATION: Duration = Duration::from_secs(5);

/// Does what a container with fewer privileges cannot do later.
pub fn initialise(config: &Config) -> anyhow::Result<()> {
    sys::capabilities::require_privileges()?;
    sys::kernel::require_kernel()?;
    sys::filesystems::mount_bpf(&config.bpf_root)?;
    info!(
        "{} is there, nothing else needs to be done once",
        config.bpf_root.display()
    );
    Ok(())
}

/// Runs until SIGTERM or SIGINT. The datapath stays as it is then (P4). While
/// a newer agent is the owner of the bpf root, this one stands by.
pub fn run(mut configuration: Configuration, mut config: Config) -> anyhow::Result<()> {
    sys::capabilities::require_privileges()?;
    sys::kernel::require_kernel()?;
    let mut stop = in_runtime(async {
        // Before anything is changed on this node.
        config.source.check(&config.node.name).await?;
        StopSignals::listen()
    })?;
    let mounted_bpf = sys::filesystems::mount_bpf(&config.bpf_root)?;
    let private = warn_of_private_mount(&config.bpf_root, mounted_bpf);
    let name = Name::of_this_process("run", &config.node.name);
    let candidate = Candidate::new(&config.bpf_root, name);
    let mut next = in_runtime(async {
        tokio::select! {
            owner = candidate.take_over() => Ok(Some(owner?)),
            () = stop.received() => Ok(None),
        }
    })?;
    while let Some(ownership) = next {
        if configuration.has_changed() {
            // While another agent was the owner.
            match in_runtime(try_new(&mut configuration)) {
                Ok((_, new)) => config = new,
                Err(error) => {
                    warn!("the configuration cannot be used, going on without: {error:#}");
                }
            }
        }
        sys::memory::set_oom_score_adj(config.oom_score_adj);
        if let Err(error) = sys::conntrack::apply(&config.conntrack, &config.proc_sys) {
            warn!("connection tracking of other flows is not as configured: {error}");
        }
        let health = Health::default();
        health.tell(Subject::Mount, private.clone());
        let serving = serve(
            &config,
            &mut configuration,
            &ownership,
            &mut stop,
            mounted_bpf,
            health,
        );
        let ended = in_runtime(serving)?;
        if let Ended::Reconfigured(new) = ended {
            if new.bpf_root != config.bpf_root {
                info!("another bpf root takes a new process, stopping; forwarding goes on");
                return Ok(());
            }
            info!("the configuration has changed, starting over with it; forwarding goes on");
            config = *new;
            next = Some(ownership);
            continue;
        }
        drop(ownership);
        next = match ended {
            Ended::Stopped | Ended::Reconfigured(_) => None,
            Ended::Uprooted => {
                warn!(
                    "{} was removed by someone else, starting over",
                    config.bpf_root.display()
                );
                Some(in_runtime(async { Ok(candidate.take_over().await?) })?)
            }
            Ended::Superseded => in_runtime(stand_by(&config, &candidate, &mut stop))?,
        };
    }
    Ok(())
}

/// Waits until the configuration's files say something else that can be used, and returns
/// it. What cannot be used changes nothing.
///
/// The files are read again and again: how one is replaced, by a link to another folder as
/// in the mount of a `ConfigMap`, by a rename or in place, makes no difference then.
async fn reconfigured(configuration: &mut Configuration, config: &Config) -> Box<Config> {
    loop {
        tokio::time::sleep(READ_CONFIGURATION).await;
        if !configuration.has_changed() {
            continue;
        }
        match try_new(configuration).await {
            Ok((effective, new)) if new != *config => {
                effective.log();
                return Box::new(new);
            }
            Ok(_) => debug!("the configuration's files have changed, what they mean has not"),
            Err(error) => warn!(
                "the configuration's files have changed and cannot be used, so what they said \
                 before stays in force: {error:#}"
            ),
        }
    }
}

async fn try_new(configuration: &mut Configuration) -> anyhow::Result<(Effective, Config)> {
    let effective = configuration.load()?;
    let config = effective.config()?;
    config.source.check(&config.node.name).await?;
    Ok((effective, config))
}

/// Says so if what is pinned does not outlive this process, or is not seen by others.
fn warn_of_private_mount(bpf_root: &Path, mounted_bpf: bool) -> Option<Condition> {
    let existing = bpf_root.ancestors().find(|path| path.exists())?;
    let until = match mount_namespace::lifetime(existing, mounted_bpf) {
        Lifetime::Host => return None,
        Lifetime::Others => "the last process of this mount namespace ends",
        Lifetime::Process => "this process ends",
    };
    let text = format!(
        "the bpf file system at {} is seen in this mount namespace only, as under `ip netns exec`: \
         forwarding ends when {until}, and `get` finds nothing from elsewhere; \
         `nsenter --net=FILE` enters a network namespace without that",
        bpf_root.display()
    );
    warn!("{text}");
    Some(Condition { text, fails: false })
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
    if let Some(address) = config.servers.metrics {
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
    /// The configuration has changed to this.
    Reconfigured(Box<Config>),
}

/// Keeps the datapath for as long as this agent is the owner.
async fn serve(
    config: &Config,
    configuration: &mut Configuration,
    ownership: &Ownership,
    stop: &mut StopSignals,
    mounted_bpf: bool,
    health: Health,
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
        programs_adopted = loaded.programs.are_pinned(),
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
    let reconciler = new_reconciler(config, &metrics, &health, &growth, is_fresh)
        .with_family::<V4>(table_sync::<V4>(&pins, &removed_backends)?)
        .with_family::<V6>(table_sync::<V6>(&pins, &removed_backends)?);
    let inputs = node::NodeInputs {
        stale: reconciler.is_stale(),
        node: reconciler.node(),
        service_ranges: reconciler.service_ranges(),
    };
    let mut in_force = reconciler.in_force();
    if !is_fresh {
        health.adopted();
    }
    let recorder = background::start(config, registry, &health, &metrics).await?;
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
        let options = node_options(config, &listen, mounted_bpf, &health);
        let inputs = inputs.clone();
        start_on_node(loaded, predecessors, config, options, inputs, &metrics)
    };
    let (mut controller, mut sockets) = start(loaded, predecessors).await?;

    background::serve_health_check_ports(config, &health, recorder, listen.subscribe());
    let mut reconfigured = pin!(reconfigured(configuration, config));
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
            new = &mut reconfigured => ControlFlow::Break(Ended::Reconfigured(new)),
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
                health.turned();
            }
        }
    }
}

/// A reconciler without families yet. A node that is `fresh` has no tables of an earlier
/// agent, so that the state on disk is the newest there is.
fn new_reconciler(
    config: &Config,
    metrics: &Metrics,
    health: &Health,
    growth: &Rc<Growth>,
    fresh: bool,
) -> Reconciler {
    let reconciler = Reconciler::new(config.node.name.clone(), config.intervals, metrics.clone())
        .with_health(health)
        .with_external_ips(config.node.feature_gates.service_external_ips)
        .allowing_empty(config.allow_empty)
        .with_growth(growth);
    match (&config.source, &config.state_dir) {
        (Source::Kubernetes(_), Some(folder)) => {
            reconciler.with_last_state(Store::new(folder, &config.node.name), fresh)
        }
        _ => reconciler,
    }
}

fn node_options(
    config: &Config,
    listen: &watch::Sender<Addresses>,
    mounted_bpf: bool,
    health: &Health,
) -> node::Options {
    node::Options {
        mode: config.attach,
        node: config.node.clone(),
        audit: config.intervals.audit,
        listen: listen.clone(),
        mounted_bpf,
        health: health.clone(),
    }
}

/// Puts the programs in place on the node's devices and cgroups.
async fn start_on_node(
    mut loaded: Loaded,
    predecessors: Predecessors,
    config: &Config,
    options: node::Options,
    inputs: node::NodeInputs,
    metrics: &Metrics,
) -> anyhow::Result<(NodeController, Sockets)> {
    let pins = Pins::new(&config.bpf_root);
    log::forward(&mut loaded.ebpf);
    let controller = NodeController::start(loaded, pins.clone(), options, inputs, metrics.clone());
    let mut controller = controller.await?;
    growth::finish(&pins);
    let sockets = Sockets::start(controller.loaded(), &pins, &config.sockets, metrics.clone())?;
    controller.loaded().programs.state()?;
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

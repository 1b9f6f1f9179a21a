//! Tables that nobody serves from, filled from a directory of manifests by the
//! agent's own chain.

use std::{cell::RefCell, collections::BTreeSet, net::IpAddr, path::Path, rc::Rc, time::Duration};

use anyhow::Context as _;
use ipnet::IpNet;
use proxy_common::{
    LAYOUT_VERSION,
    config::Config,
    family::{V4, V6},
};
use tracing::warn;

use super::engine::Engine;
use crate::{
    config::{
        NodeConfig,
        node_ports::{LOOPBACK_V4, LOOPBACK_V6},
    },
    dataplane::{
        load::Sizes,
        mapped::Access,
        maps::Maps,
        tables::{KernelFamily, KernelTables},
    },
    metrics::Metrics,
    model::{IpFamily, Node, ObjectKey},
    node::{addresses, service_cidrs::ranges, settings},
    reconcile::{Desired, Intervals, Reconciler, SyncOutcome, SyncTarget},
    source::{self, Batch, Change, Update, manifests},
    table_sync::TableSync,
};

/// The engine of a node as the manifests describe it.
pub fn engine(directory: &Path, node: &NodeConfig, addresses: &[IpAddr]) -> anyhow::Result<Engine> {
    let objects = manifests::read_once(directory)?;
    let mut engine = Engine::offline(sizes(&objects))?;
    engine.fill(objects, node, addresses)?;
    Ok(engine)
}

/// Tables in which the objects have room.
fn sizes(objects: &Batch) -> Sizes {
    let (mut ports, mut frontends, mut endpoints) = (0, 0, 0);
    for change in objects {
        match change {
            Change::Service(Update::Relist(services)) => {
                for service in services
                    .iter()
                    .filter_map(|service| service.state.as_ref().usable())
                {
                    let addresses =
                        1 + service.external_ips.len() + service.load_balancer_ips.len();
                    ports += service.ports.len();
                    // Each address also has an entry of its own, and each port
                    // may be a NodePort.
                    frontends += (service.ports.len() + 1) * (addresses + 1);
                }
            }
            Change::EndpointSlice(Update::Relist(slices)) => {
                let slices = slices
                    .iter()
                    .filter_map(|slice| slice.state.as_ref().usable());
                endpoints += slices
                    .map(|slice| slice.ports.len() * slice.endpoints.len())
                    .sum::<usize>();
            }
            _ => {}
        }
    }
    let size = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).max(LEAST);
    Sizes {
        services: size(ports).max(size(frontends).div_ceil(Sizes::FRONTENDS_PER_SERVICE)),
        endpoints: size(endpoints),
        flows: size(0),
        ..Sizes::DEFAULT
    }
}

/// No table is smaller.
const LEAST: u32 = 64;

impl Engine {
    /// Makes the tables those of a node with these objects, of which there is
    /// a list of each kind, and these addresses; without any, with those of its
    /// Node object.
    pub fn fill(
        &mut self,
        objects: Batch,
        config: &NodeConfig,
        addresses: &[IpAddr],
    ) -> anyhow::Result<()> {
        let cluster = self.program(objects, config)?;
        let mut settings = Config {
            // Any key will do; always the same one makes answers repeatable.
            hash_key: [0; 2],
            layout: LAYOUT_VERSION,
            ..Config::default()
        };
        settings::describe_node(&mut settings, config, cluster.node.as_ref());
        settings.service_ranges_v4 = ranges::<V4>(&cluster.service_ranges).prefixes;
        settings.service_ranges_v6 = ranges::<V6>(&cluster.service_ranges).prefixes;
        // One row, which is there.
        let _ = self.config.set(0, settings);
        self.set_addresses(config, cluster.node.as_ref(), addresses)?;
        self.v4.forget();
        self.v6.forget();
        Ok(())
    }

    /// Runs the agent's chain on the objects, once.
    fn program(&self, objects: Batch, config: &NodeConfig) -> anyhow::Result<ClusterObjects> {
        let failure = Failure::default();
        let never = Duration::from_hours(24);
        let intervals = Intervals {
            audit: never,
            ..Intervals::default()
        };
        let reconciler = Reconciler::new(&config.name, intervals, Metrics::default())
            .with_external_ips(config.feature_gates.service_external_ips)
            .with_family::<V4>(Watched::<V4>::new(self.maps(), &failure)?)
            .with_family::<V6>(Watched::<V6>::new(self.maps(), &failure)?);
        let (node, service_ranges) = (reconciler.node(), reconciler.service_ranges());
        let (sender, changes) = source::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        runtime.block_on(async {
            sender
                .send(objects)
                .await
                .context("hand over the manifests")?;
            // It ends when nothing more can come.
            drop(sender);
            reconciler.run(changes).await;
            anyhow::Ok(())
        })?;
        match failure.take() {
            Some(error) => Err(error.context("fill the tables")),
            None => Ok(ClusterObjects {
                node: node.borrow().clone(),
                service_ranges: service_ranges.borrow().clone().unwrap_or_default(),
            }),
        }
    }

    fn set_addresses(
        &mut self,
        config: &NodeConfig,
        node: Option<&Node>,
        addresses: &[IpAddr],
    ) -> anyhow::Result<()> {
        let mut own = addresses.to_vec();
        if own.is_empty() {
            own.extend(node.iter().flat_map(|node| &node.addresses).map(|a| a.ip));
        }
        if own.is_empty() {
            warn!(
                node = config.name,
                "the node has no addresses, so nothing is a NodePort: name a Node of the manifests with --hostname-override, or its addresses with --node-address"
            );
        }
        let mut local: Vec<IpNet> = own.into_iter().map(IpNet::from).collect();
        local.extend([IpNet::from(LOOPBACK_V4), IpNet::from(LOOPBACK_V6)]);
        let accepted =
            IpFamily::ALL.map(|family| config.node_port_addresses.accepted(family, node));
        let [v4, v6] = &accepted;
        let entries = addresses::desired::entries(&local, |family| match family {
            IpFamily::V4 => v4,
            IpFamily::V6 => v6,
        });
        self.v4.local_addrs.write(&entries)?;
        self.v6.local_addrs.write(&entries)?;
        Ok(())
    }
}

/// What else the objects say.
struct ClusterObjects {
    /// This node's object.
    node: Option<Node>,
    /// Where cluster IPs come from.
    service_ranges: BTreeSet<IpNet>,
}

/// Why a family could not be programmed.
type Failure = Rc<RefCell<Option<anyhow::Error>>>;

/// A [`TableSync`] whose failure is not left to a later sync.
struct Watched<F: KernelFamily> {
    table_sync: TableSync<F, KernelTables<F>>,
    failure: Failure,
}

impl<F: KernelFamily> Watched<F> {
    fn new(maps: &impl Maps, failure: &Failure) -> anyhow::Result<Self> {
        Ok(Self {
            table_sync: TableSync::new(KernelTables::open(maps, Access::Write)?)?,
            failure: Rc::clone(failure),
        })
    }
}

impl<F: KernelFamily> SyncTarget<F> for Watched<F> {
    fn sync(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        complete: bool,
        desired: &mut Desired<F>,
    ) -> SyncOutcome {
        let mut outcome = self.table_sync.sync(services, complete, desired);
        if let Some(error) = outcome.error.take() {
            self.failure.replace(Some(error.context(F::NAME)));
        }
        outcome
    }

    fn audit(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        desired: &mut Desired<F>,
    ) -> anyhow::Result<usize> {
        self.table_sync.audit(services, desired)
    }
}

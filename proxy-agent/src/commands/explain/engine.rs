//! Asks the programs, and reads in the tables what their answers name.

use std::{
    cell::OnceCell,
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    backend::Backend,
    config::Config,
    device::Device,
    explain::Question,
    family::{V4, V6},
};

use super::{
    decode::{self, Explanation, Facts, Verdict},
    flow::{Flow, Transport, Via},
    packet,
};
use crate::{
    config::ClusterCidr,
    dataplane::{
        cgroup,
        devices::DeviceTable,
        explain::Explainer,
        load::{self, Sizes},
        local_addrs::LocalAddrTable,
        mapped::{Access, Mapped},
        maps::Maps,
        pins::Pins,
        tables::{KernelFamily, KernelTables},
    },
    sys,
};

/// The programs, and the tables they look at.
pub struct Engine {
    explainer: Explainer,
    pub(super) config: Mapped<Config>,
    pub(super) v4: Side<V4>,
    pub(super) v6: Side<V6>,
    /// The node's devices; none offline.
    devices: Vec<(u32, Device)>,
    offline: bool,
    /// Whether programs translate in the calls of sockets.
    serves_calls: bool,
    pods: ClusterCidr,
}

/// One family's tables.
pub(super) struct Side<F: KernelFamily> {
    pub(super) tables: KernelTables<F>,
    pub(super) local_addrs: LocalAddrTable<F>,
    /// Addresses of this node's endpoints.
    endpoints_here: OnceCell<BTreeSet<F::Addr>>,
}

impl Engine {
    /// Asks about the pinned tables.
    pub fn live(pins: &Pins) -> anyhow::Result<Self> {
        let config: Mapped<Config> = load::open_config(pins, Access::Read)?;
        let devices = DeviceTable::open(pins)?.read()?;
        let cookie = config.get(0).map_or(0, |config| config.netns_cookie);
        if cookie != 0 && cookie != sys::netns::cookie() {
            anyhow::bail!(
                "the tables below {} are those of another network namespace: run explain there, for example with nsenter --net",
                pins.root().display()
            );
        }
        let engine = Self::new(Explainer::live(pins)?, Access::Read, devices, false)?;
        Ok(Self {
            serves_calls: cgroup::is_attached(pins),
            ..engine
        })
    }

    /// Asks about tables of these sizes, which are empty at first.
    pub fn offline(sizes: Sizes) -> anyhow::Result<Self> {
        Self::new(Explainer::offline(sizes)?, Access::Write, Vec::new(), true)
    }

    fn new(
        explainer: Explainer,
        access: Access,
        devices: Vec<(u32, Device)>,
        offline: bool,
    ) -> anyhow::Result<Self> {
        let maps = explainer.maps();
        Ok(Self {
            config: load::open_config(maps, access)?,
            v4: Side::open(maps, access)?,
            v6: Side::open(maps, access)?,
            devices,
            offline,
            serves_calls: true,
            pods: ClusterCidr::default(),
            explainer,
        })
    }

    /// Addresses in these prefixes are taken for pods', too, where a question
    /// does not say.
    #[must_use]
    pub fn with_pods(mut self, pods: ClusterCidr) -> Self {
        self.pods = pods;
        self
    }

    /// The maps that the programs look at.
    pub(super) fn maps(&self) -> &impl Maps {
        self.explainer.maps()
    }

    /// What would become of a flow.
    pub fn explain(&mut self, flow: &Flow) -> anyhow::Result<Explanation> {
        let config = self.config.get(0).unwrap_or_default();
        let via = flow.via.unwrap_or_else(|| self.suggested(flow, &config));
        // This node's own packets to its own addresses go by the loopback device, which
        // has no programs: such calls are served, or nothing is.
        let is_call = via == Via::Node && self.is_own(flow.to.ip());
        let (question, ifindex) = self.question(via, is_call);
        let answer = self
            .explainer
            .ask(question, &packet::first(flow), ifindex)?;
        let mut facts = Facts::new(*flow, via);
        match flow.to {
            SocketAddr::V4(_) => decode::answer(&mut facts, &self.v4.tables, &answer)?,
            SocketAddr::V6(_) => decode::answer(&mut facts, &self.v6.tables, &answer)?,
        }
        let is_served = self.serves_calls && flow.transport != Transport::Sctp;
        if is_call && !is_served && Verdict::from(facts.decision) != Verdict::Pass {
            facts.leave();
        }
        Ok(facts.into())
    }

    /// Returns whether the address is one of this node.
    fn is_own(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.v4.is_own(ip),
            IpAddr::V6(ip) => self.v6.is_own(ip),
        }
    }

    /// Where the client seems to be.
    fn suggested(&self, flow: &Flow, config: &Config) -> Via {
        match flow.from.ip {
            IpAddr::V4(ip) => self.v4.suggested(ip, config, &self.pods),
            IpAddr::V6(ip) => self.v6.suggested(ip, config, &self.pods),
        }
    }

    /// How a packet comes to the programs, and by which device if there is one.
    fn question(&self, via: Via, is_call: bool) -> (Question, u32) {
        let (usual, wanted, mask) = match via {
            Via::Node => (0, 0, 0),
            Via::Pod => (
                Device::COVERED | Device::POD_ROUTES | Device::LOCAL_CLIENTS,
                Device::COVERED | Device::POD_ROUTES,
                Device::COVERED | Device::POD_ROUTES,
            ),
            Via::External => (
                Device::COVERED | Device::UPLINK,
                Device::COVERED | Device::UPLINK,
                Device::COVERED | Device::UPLINK,
            ),
        };
        let device = self
            .devices
            .iter()
            .filter(|(_, device)| via != Via::Node && device.flags & mask == wanted)
            // A device that the local detector knows comes first.
            .max_by_key(|(_, device)| device.flags & Device::LOCAL_CLIENTS);
        let question = Question {
            device_flags: device.map_or(usual, |(_, device)| device.flags),
            flags: flag(via == Via::Node && !is_call, Question::HOST)
                | flag(is_call, Question::CALL)
                | flag(self.offline, Question::OFFLINE),
        };
        (question, device.map_or(0, |(ifindex, _)| *ifindex))
    }
}

fn flag(set: bool, flag: u32) -> u32 {
    if set { flag } else { 0 }
}

impl<F: KernelFamily> Side<F> {
    fn open(maps: &impl Maps, access: Access) -> anyhow::Result<Self> {
        Ok(Self {
            tables: KernelTables::open(maps, access)?,
            local_addrs: LocalAddrTable::open(maps)?,
            endpoints_here: OnceCell::new(),
        })
    }

    /// The tables hold something else than before.
    pub(super) fn forget(&mut self) {
        self.endpoints_here.take();
    }

    fn is_own(&self, ip: F::Ip) -> bool {
        let own = self.local_addrs.entries().keys();
        own.into_iter().any(|prefix| prefix.contains(&ip.into()))
    }

    fn suggested(&self, ip: F::Ip, config: &Config, pods: &ClusterCidr) -> Via {
        if self.is_own(ip) {
            return Via::Node;
        }
        let addr = F::addr(ip);
        let is_pod = F::pods(config).is_some_and(|pods| pods.contains(&addr))
            || pods.contains(ip.into())
            || self.endpoints_here().contains(&addr);
        if is_pod { Via::Pod } else { Via::External }
    }

    fn endpoints_here(&self) -> &BTreeSet<F::Addr> {
        const HERE: u8 = Backend::<()>::USED | Backend::<()>::HERE;
        self.endpoints_here.get_or_init(|| {
            let all = self.tables.backends();
            all.filter(|backend| backend.flags & HERE == HERE)
                .map(|backend| backend.addr)
                .collect()
        })
    }
}

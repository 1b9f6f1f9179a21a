//! The programs and tables, and single runs of packets through them.

mod lease;
mod side;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use aya::{maps::ProgramArray, programs::SchedClassifier};
use proxy_agent::{
    dataplane::{
        counters::Counters,
        devices::DeviceTable,
        load::{self, LoadOptions, Loaded, SLOW_PROGRAMS, Sizes},
        pins::Pins,
        sweep::{self, Swept},
        vlans::VlanTable,
    },
    node::{flow_sweeper, settings},
};
use proxy_common::{
    config::{Config, Prefix, Timeouts},
    device::Device,
    family::{V4, V6},
    masquerade::PortRange,
    net::Protocol,
    vlan::Vlan,
};

use self::side::Side;
pub use self::{
    lease::Lease,
    side::{AffinityRecord, FlowRecord},
};
use super::{
    Cast, Packet, ServicePort,
    run::{Hook, LOOPBACK, Ran, Runner, Verdict},
};
use crate::{Family, bpffs::PinDirectory, name};

/// The programs and tables, loaded as the agent loads them.
pub struct Datapath {
    loaded: Loaded,
    counters: Counters,
    v4: Side<V4>,
    v6: Side<V6>,
    devices: DeviceTable,
    shares: [u32; 2],
    vlans: VlanTable,
}

impl Datapath {
    /// Tables of modest size.
    pub const SIZES: Sizes = Sizes {
        services: 1024,
        endpoints: 8192,
        flows: 8192,
        ..Sizes::DEFAULT
    };

    /// Tables of [`Self::SIZES`], empty but for bits of the filters that earlier
    /// tests have set. Loaded anew only if all that were loaded before are in use:
    /// the verifier takes its time.
    pub fn load() -> Lease {
        let mut datapath = Lease::of(|| Self::with_sizes(Self::SIZES));
        datapath.clear();
        datapath
    }

    /// Tables of these sizes, [`Cast`]'s pods as local clients, and the
    /// loopback with [`Cast`]'s node addresses.
    pub fn with_sizes(sizes: Sizes) -> Self {
        Self::with_ports(sizes, PortRange::UNPRIVILEGED)
    }

    /// The same with other ports for masqueraded flows.
    pub fn with_ports(sizes: Sizes, masquerade_ports: PortRange) -> Self {
        let directory = PinDirectory::reserve(&name::unique()).expect("a bpf file system");
        let pins = Pins::new(directory.path());
        let options = LoadOptions {
            pins: pins.clone(),
            sizes,
            masquerade_ports,
            log_level: 0,
        };
        let loaded = load::load(&options).unwrap_or_else(|error| {
            panic!("{:#}", anyhow::Error::new(error));
        });
        let mut datapath = Self {
            counters: Counters::open(&pins).expect("counters"),
            v4: Side::open(&pins),
            v6: Side::open(&pins),
            devices: DeviceTable::open(&pins).expect("a table of devices"),
            vlans: VlanTable::open(&pins).expect("a table of VLANs"),
            loaded,
            shares: [0; 2],
        };
        // Everything is held by file descriptors now; nothing can stay behind.
        drop(directory);
        datapath.clear();
        datapath
    }

    /// Empties all tables and sets what [`Self::configure`] and
    /// [`Self::device`] would without a change.
    fn clear(&mut self) {
        self.v4.clear();
        self.v6.clear();
        self.configure(|_| {});
        self.device(|_| {});
        self.vlans(&BTreeMap::new());
    }

    /// Sets the programs' settings: the tests' usual ones, changed by `change`.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let layout = self.loaded.config.get(0).expect("a row").layout;
        let mut config = Config {
            hash_key: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
            layout,
            flags: Config::DETECT_PREFIX_V4 | Config::DETECT_PREFIX_V6,
            pods_v4: Prefix {
                addr: std::net::Ipv4Addr::new(10, 244, 0, 0).into(),
                mask: std::net::Ipv4Addr::new(255, 255, 0, 0).into(),
            },
            pods_v6: Prefix {
                addr: std::net::Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0).into(),
                mask: std::net::Ipv6Addr::new(0xffff, 0xffff, 0xffff, 0, 0, 0, 0, 0).into(),
            },
            timeouts: Timeouts {
                tcp_established: 1000,
                tcp_opening: 60,
                tcp_closing: 60,
                other_replied: 120,
                other_unreplied: 30,
                pressed: 2,
            },
            ..Config::default()
        };
        change(&mut config);
        self.loaded.config.set(0, config).expect("a row");
    }

    /// Describes the loopback: the tests' usual addresses, changed by `change`.
    pub fn device(&mut self, change: impl FnOnce(&mut Device)) {
        let (v4, v6) = (Cast::of(Family::V4).node(), Cast::of(Family::V6).node());
        let mut device = Device::default();
        if let IpAddr::V4(addr) = v4 {
            device.masquerade_v4 = addr.into();
        }
        if let IpAddr::V6(addr) = v6 {
            device.masquerade_v6 = addr.into();
        }
        change(&mut device);
        self.devices.set(LOOPBACK, device).expect("a free entry");
    }

    /// Sets the uplinks of all VLANs.
    pub fn vlans(&mut self, vlans: &BTreeMap<Vlan, u32>) {
        self.vlans.set_all(vlans).expect("room");
    }

    /// Sets a Service port, in place of the one with the same frontend.
    pub fn serve(&mut self, port: &ServicePort) {
        self.serve_all(std::slice::from_ref(port));
    }

    /// Sets many Service ports at once. Those of one Service are all that it has.
    pub fn serve_all(&mut self, ports: &[ServicePort]) {
        let (v4, v6): (Vec<_>, Vec<_>) = ports.iter().partition(|port| port.frontend.is_ipv4());
        self.v4.serve(&v4);
        self.v6.serve(&v6);
    }

    /// Makes `addr` one of this node's own, with flags as in
    /// [`proxy_common::local_addr::LocalAddr::flags`].
    pub fn local_addr(&mut self, addr: IpAddr, flags: u32) {
        match addr {
            IpAddr::V4(addr) => self.v4.local_addr(addr, flags),
            IpAddr::V6(addr) => self.v6.local_addr(addr, flags),
        }
    }

    /// Removes a Service port.
    pub fn unserve(&mut self, port: &ServicePort) {
        match Family::of(port.frontend.ip()) {
            Family::V4 => self.v4.unserve(port),
            Family::V6 => self.v6.unserve(port),
        }
    }

    /// Runs a packet through a program.
    pub fn run(&self, hook: Hook, packet: &Packet) -> Ran {
        self.run_bytes(hook, &packet.bytes())
    }

    /// Runs any bytes through a program.
    pub fn run_bytes(&self, hook: Hook, packet: &[u8]) -> Ran {
        let before = self.counters.read();
        let (verdict, packet) = self.run_uncounted(hook, packet);
        let after = self.counters.read();
        let counted = after
            .into_iter()
            .map(|(label, count)| (label, count - before.get(label).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        Ran {
            verdict,
            packet,
            counted,
        }
    }

    /// The same without reading the counters, for runs by the thousand.
    pub fn run_uncounted(&self, hook: Hook, packet: &[u8]) -> (Verdict, Vec<u8>) {
        self.runner(hook).run(packet)
    }

    /// All counters.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.counters.read()
    }

    /// Returns a runner that runs packets through a program, from any thread.
    pub fn runner(&self, hook: Hook) -> Runner<'_> {
        Runner::new(self.program(hook.program()), hook)
    }

    /// Loads one more program, which the agent does not, unless it is loaded.
    pub fn load_program(&mut self, name: &str) {
        let program = self.program_mut(name);
        if program.fd().is_ok() {
            return;
        }
        program.load().unwrap_or_else(|error| {
            panic!("{:#}", anyhow::Error::new(error));
        });
    }

    /// Takes the programs of the slow path out of their places.
    pub fn remove_slow_path(&mut self) {
        let map = self.loaded.ebpf.map_mut("PROGRAMS").expect("a map");
        let mut programs = ProgramArray::try_from(map).expect("a map of programs");
        for index in (0..).take(SLOW_PROGRAMS.len()) {
            programs.clear_index(&index).expect("a program");
        }
    }

    /// A loaded program.
    pub fn program(&self, name: &str) -> &SchedClassifier {
        let program = self.loaded.ebpf.program(name);
        program
            .and_then(|program| program.try_into().ok())
            .unwrap_or_else(|| panic!("a program {name}"))
    }

    /// A program, loaded or not.
    pub fn program_mut(&mut self, name: &str) -> &mut SchedClassifier {
        let program = self.loaded.ebpf.program_mut(name);
        program
            .and_then(|program| program.try_into().ok())
            .unwrap_or_else(|| panic!("a program {name}"))
    }

    /// All flow records of a family, in no order.
    pub fn flows(&self, family: Family) -> Vec<FlowRecord> {
        match family {
            Family::V4 => self.v4.flows(),
            Family::V6 => self.v6.flows(),
        }
    }

    /// The flow records of a client, by index.
    pub fn flows_of(&self, client: SocketAddr) -> Vec<FlowRecord> {
        let mut flows = self.flows(Family::of(client.ip()));
        flows.retain(|flow| flow.client == client);
        flows.sort_by_key(|flow| flow.index);
        flows
    }

    /// All clients of a family that are remembered for session affinity.
    pub fn affinities(&self, family: Family) -> Vec<AffinityRecord> {
        match family {
            Family::V4 => self.v4.affinities(),
            Family::V6 => self.v6.affinities(),
        }
    }

    /// Makes what is remembered for session affinity `ticks` older.
    pub fn age_affinities(&mut self, family: Family, ticks: u32) {
        match family {
            Family::V4 => self.v4.age_affinities(ticks),
            Family::V6 => self.v6.age_affinities(ticks),
        }
    }

    /// Number of reply tuples that masqueraded flows hold.
    pub fn reply_tuples(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4.reply_tuples(),
            Family::V6 => self.v6.reply_tuples(),
        }
    }

    /// Removes all that is known of flows and clients, as if the pins were lost.
    pub fn forget_flows(&mut self) {
        self.v4.forget_flows();
        self.v6.forget_flows();
    }

    /// Makes a client's flow records `ticks` older.
    pub fn age(&mut self, client: SocketAddr, ticks: u32) {
        match Family::of(client.ip()) {
            Family::V4 => self.v4.age(ticks, |owner| owner == client),
            Family::V6 => self.v6.age(ticks, |owner| owner == client),
        }
    }

    /// Makes all flow records of a family `ticks` older.
    pub fn age_all(&mut self, family: Family, ticks: u32) {
        match family {
            Family::V4 => self.v4.age(ticks, |_| true),
            Family::V6 => self.v6.age(ticks, |_| true),
        }
    }

    /// Flows that a client may have, as the programs were last told; 0 for any number.
    pub fn share(&self, family: Family) -> u32 {
        self.shares[usize::from(family == Family::V6)]
    }

    /// Sweeps as the agent does, and tells the programs whether tables are nearly full, and
    /// the clients' shares. Returns whether those of the family are nearly full.
    pub fn sweep_and_tell(&mut self, family: Family) -> bool {
        let swept = self.sweep();
        let mut config = self.loaded.config.get(0).expect("a row");
        let flags = [Config::PRESSED_V4, Config::PRESSED_V6];
        for (flag, swept) in flags.into_iter().zip(swept) {
            let before = config.flags & flag != 0;
            let pressed = self.loaded.is_pressed(swept, before);
            settings::set_flag(&mut config.flags, flag, pressed);
        }
        self.loaded.config.set(0, config).expect("a row");
        self.shares = flow_sweeper::share_out(&mut self.loaded).expect("shares");
        config.flags & flags[usize::from(family == Family::V6)] != 0
    }

    /// Enters a reply tuple without a flow, of a client, to a masquerade port.
    pub fn plant_reply_tuple(
        &mut self,
        backend: SocketAddr,
        masquerade: SocketAddr,
        client: SocketAddr,
    ) {
        match Family::of(client.ip()) {
            Family::V4 => self.v4.plant_reply_tuple(backend, masquerade, client),
            Family::V6 => self.v6.plant_reply_tuple(backend, masquerade, client),
        }
    }

    /// Enters a packet of a flow of kube-proxy's in `FOREIGN`, by its ends.
    pub fn plant_foreign(
        &mut self,
        src: SocketAddr,
        dst: SocketAddr,
        protocol: Protocol,
        direction: u32,
    ) {
        match Family::of(src.ip()) {
            Family::V4 => self.v4.plant_foreign(src, dst, protocol, direction),
            Family::V6 => self.v6.plant_foreign(src, dst, protocol, direction),
        }
    }

    /// Everything in a family's `FOREIGN`.
    pub fn foreign(&self, family: Family) -> Vec<(SocketAddr, SocketAddr, Protocol)> {
        match family {
            Family::V4 => self.v4.foreign(),
            Family::V6 => self.v6.foreign(),
        }
    }

    /// Runs the sweeper; IPv4's result first.
    pub fn sweep(&mut self) -> [Swept; 2] {
        sweep::sweep(&mut self.loaded.ebpf).expect("a sweep")
    }
}

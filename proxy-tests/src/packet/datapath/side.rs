//! One family's tables, as tests fill and read them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use aya::maps::{HashMap, LpmTrie, Map, MapData, lpm_trie::Key};
use proxy_agent::{
    dataplane::{
        foreign::ForeignTable,
        mapped::Access,
        pins::Pins,
        tables::{KernelFamily, KernelTables, open_affinity},
    },
    model::ObjectKey,
    reconcile::{SyncOutcome, SyncTarget as _},
    select::DesiredPort,
    table_sync::TableSync,
};
use proxy_common::{
    affinity::{Affinity, AffinityKey},
    family::{V4, V6},
    flow::{Flow, FlowKey},
    foreign::{Foreign, Tuple},
    local_addr::LocalAddr,
    masquerade::MasqueradeKey,
    net::{BePort, Protocol},
};

use crate::packet::ServicePort;

/// A record of the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    pub client: SocketAddr,
    pub protocol: Protocol,
    pub index: u8,
    pub frontend: SocketAddr,
    pub backend: SocketAddr,
    /// Port 0: none yet.
    pub masquerade: SocketAddr,
    /// The client as it is between the hooks.
    pub between: SocketAddr,
    pub highest: u8,
    /// Ifindex of the device that leads to the client, as in [`Flow::uplink`].
    pub uplink: u32,
}

/// A client that session affinity remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityRecord {
    pub client: IpAddr,
    /// Of the local set, not of the cluster set.
    pub local: bool,
    /// Rows of `SERVICES` and `BACKENDS`.
    pub service: u32,
    pub backend: u32,
    pub last_used: u32,
}

/// One family's tables.
pub(super) struct Side<F: TestFamily> {
    table_sync: TableSync<F, KernelTables<F>>,
    flows: HashMap<MapData, F::FlowKey, F::Record>,
    replies: HashMap<MapData, F::ReplyKey, F::FlowKey>,
    fragments: HashMap<MapData, F::FragmentKey, [u8; 8]>,
    foreign: ForeignTable<F>,
    affinities: HashMap<MapData, F::AffinityKey, Affinity>,
    local_addrs: LpmTrie<MapData, F::Addr, LocalAddr>,
}

/// A family whose tables the tests read.
pub(super) trait TestFamily: KernelFamily {
    /// The value of `FLOWS`, to be written too.
    type Record: aya::Pod + From<Flow<Self::Addr>> + Into<Flow<Self::Addr>>;
    /// The key of `MASQ`.
    type ReplyKey: aya::Pod + From<MasqueradeKey<Self::Addr>>;
    /// The key of `FRAGMENTS`, as bytes.
    type FragmentKey: aya::Pod;
}

impl TestFamily for V4 {
    type Record = Flow<Self::Addr>;
    type ReplyKey = MasqueradeKey<Self::Addr>;
    type FragmentKey = [u8; 16];
}

impl TestFamily for V6 {
    type Record = Flow<Self::Addr>;
    type ReplyKey = MasqueradeKey<Self::Addr>;
    type FragmentKey = [u8; 40];
}

impl<F: TestFamily> Side<F> {
    pub(super) fn open(pins: &Pins) -> Self {
        let tables = KernelTables::open(pins, Access::Write).expect("tables");
        let map = |name: &str| {
            let path = pins.map(&format!("{name}_{}", F::SUFFIX));
            MapData::from_pin(path)
                .and_then(Map::from_map_data)
                .expect("a pinned map")
        };
        Self {
            table_sync: TableSync::new(tables).expect("readable tables"),
            flows: HashMap::try_from(map("FLOWS")).expect("a hash table"),
            replies: HashMap::try_from(map("MASQ")).expect("a hash table"),
            fragments: HashMap::try_from(map("FRAGMENTS")).expect("a hash table"),
            foreign: ForeignTable::open(pins).expect("a hash table"),
            affinities: open_affinity::<F>(pins).expect("a hash table"),
            local_addrs: LpmTrie::try_from(map("LOCAL_ADDRS")).expect("a trie"),
        }
    }

    pub(super) fn serve(&mut self, ports: &[&ServicePort]) {
        if ports.is_empty() {
            return;
        }
        let mut desired = BTreeMap::new();
        for port in ports {
            let of_service: &mut Vec<_> = desired.entry(port.service()).or_default();
            of_service.push(port.desired());
        }
        let outcome = self.sync(&desired, false);
        assert!(outcome.problems.is_empty(), "{:?}", outcome.problems);
    }

    pub(super) fn unserve(&mut self, port: &ServicePort) {
        self.sync(&BTreeMap::from([(port.service(), Vec::new())]), false);
    }

    fn sync(
        &mut self,
        desired: &BTreeMap<ObjectKey, Vec<DesiredPort<F>>>,
        complete: bool,
    ) -> SyncOutcome {
        let services = desired.keys().cloned().collect();
        let mut of = |service: &ObjectKey| desired.get(service).cloned().unwrap_or_default();
        let outcome = self.table_sync.sync(&services, complete, &mut of);
        assert!(outcome.error.is_none(), "{:?}", outcome.error);
        outcome
    }

    pub(super) fn flows(&self) -> Vec<FlowRecord> {
        let address = |addr: F::Addr, port: BePort| SocketAddr::new(F::ip(addr).into(), port.get());
        let entries = self
            .flows
            .iter()
            .map(|entry| entry.expect("a readable table"));
        entries
            .map(|(key, flow)| (key.into(), flow.into()))
            .map(
                |(key, flow): (FlowKey<F::Addr>, Flow<F::Addr>)| FlowRecord {
                    client: address(key.addr, key.port),
                    protocol: key.protocol,
                    index: key.index,
                    frontend: address(flow.frontend_addr, flow.frontend_port),
                    backend: address(flow.backend_addr, flow.backend_port),
                    masquerade: address(flow.masquerade_addr, flow.masquerade_port),
                    between: address(key.addr, flow.port_between(key.port)),
                    highest: flow.highest,
                    uplink: flow.uplink,
                },
            )
            .collect()
    }

    pub(super) fn clear(&mut self) {
        self.sync(&BTreeMap::new(), true);
        self.forget_flows();
        let keys: Vec<_> = self.local_addrs.keys().collect();
        for key in keys {
            let key = key.expect("readable");
            self.local_addrs
                .remove(&key)
                .expect("an entry that is there");
        }
    }

    pub(super) fn local_addr(&mut self, ip: F::Ip, flags: u32) {
        let addr = F::addr(ip);
        let bits = u32::try_from(size_of_val(&addr) * 8).expect("an address");
        self.local_addrs
            .insert(&Key::new(bits, addr), LocalAddr { flags }, 0)
            .expect("a free entry");
    }

    fn affinity_entries(&self) -> Vec<(AffinityKey<F::Addr>, Affinity)> {
        self.affinities
            .iter()
            .map(|entry| entry.expect("readable"))
            .map(|(key, affinity)| (key.into(), affinity))
            .collect()
    }

    pub(super) fn affinities(&self) -> Vec<AffinityRecord> {
        self.affinity_entries()
            .into_iter()
            .map(|(key, affinity)| AffinityRecord {
                client: F::ip(key.client).into(),
                local: key.set == 1,
                service: key.service,
                backend: affinity.backend,
                last_used: affinity.last_used,
            })
            .collect()
    }

    pub(super) fn age_affinities(&mut self, ticks: u32) {
        for (key, mut affinity) in self.affinity_entries() {
            affinity.last_used = affinity.last_used.wrapping_sub(ticks);
            self.affinities
                .insert(F::AffinityKey::from(key), affinity, 0)
                .expect("an entry that is there");
        }
    }

    pub(super) fn reply_tuples(&self) -> usize {
        self.replies.keys().count()
    }

    /// Of UDP.
    pub(super) fn plant_reply_tuple(
        &mut self,
        backend: SocketAddr,
        masquerade: SocketAddr,
        client: SocketAddr,
    ) {
        let addr = |address: SocketAddr| F::addr(F::from_ip(address.ip()).expect("of the family"));
        let [backend_port, masquerade_port, client_port] =
            [backend, masquerade, client].map(|address| BePort::new(address.port()));
        let reply = MasqueradeKey {
            backend_addr: addr(backend),
            masquerade_addr: addr(masquerade),
            backend_port,
            masquerade_port,
            protocol: Protocol::UDP,
            zero: [0; 3],
        };
        let holder = FlowKey::new(addr(client), client_port, Protocol::UDP);
        self.replies
            .insert(F::ReplyKey::from(reply), F::FlowKey::from(holder), 0)
            .expect("room");
    }

    pub(super) fn plant_foreign(
        &mut self,
        src: SocketAddr,
        dst: SocketAddr,
        protocol: Protocol,
        direction: u32,
    ) {
        let addr = |address: SocketAddr| F::addr(F::from_ip(address.ip()).expect("of the family"));
        let tuple = Tuple {
            src: addr(src),
            dst: addr(dst),
            src_port: BePort::new(src.port()),
            dst_port: BePort::new(dst.port()),
            protocol,
            zero: [0; 3],
        };
        let value = Foreign {
            entered: 0,
            direction,
        };
        assert!(self.foreign.insert(tuple, value).expect("writable"), "room");
    }

    pub(super) fn foreign(&self) -> Vec<(SocketAddr, SocketAddr, Protocol)> {
        let address = |addr: F::Addr, port: BePort| SocketAddr::new(F::ip(addr).into(), port.get());
        let entries = self.foreign.entries().expect("readable");
        let tuples = entries.into_keys().map(|tuple| {
            let (src, dst) = (
                address(tuple.src, tuple.src_port),
                address(tuple.dst, tuple.dst_port),
            );
            (src, dst, tuple.protocol)
        });
        tuples.collect()
    }

    pub(super) fn forget_flows(&mut self) {
        for tuple in self.foreign.entries().expect("readable").into_keys() {
            self.foreign.remove(tuple).expect("an entry that is there");
        }
        empty(&mut self.flows);
        empty(&mut self.replies);
        empty(&mut self.fragments);
        empty(&mut self.affinities);
    }

    pub(super) fn age(&mut self, ticks: u32, whose: impl Fn(SocketAddr) -> bool) {
        let entries: Vec<_> = self
            .flows
            .iter()
            .map(|entry| entry.expect("readable"))
            .collect();
        for (key, flow) in entries {
            let (key, mut flow): (FlowKey<F::Addr>, Flow<F::Addr>) = (key.into(), flow.into());
            let ip: IpAddr = F::ip(key.addr).into();
            if whose(SocketAddr::new(ip, key.port.get())) {
                flow.last_seen = flow.last_seen.wrapping_sub(ticks);
                self.flows
                    .insert(F::FlowKey::from(key), F::Record::from(flow), 0)
                    .expect("a record that is there");
            }
        }
    }
}

fn empty<K: aya::Pod, V: aya::Pod>(table: &mut HashMap<MapData, K, V>) {
    let keys: Vec<_> = table.keys().map(|key| key.expect("readable")).collect();
    for key in keys {
        // An LRU table may have dropped it by itself.
        let _ = table.remove(&key);
    }
}

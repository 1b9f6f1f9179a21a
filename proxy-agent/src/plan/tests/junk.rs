//! Tables in states that no agent leaves.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proxy_common::{
    backend::Backend,
    frontend::{Frontend, FrontendKey},
    net::{BePort, Protocol},
    prefilter,
    service::{Service, SessionAffinity, SlotRange},
};

use super::cluster::{TestFamily, range, service_key};
use crate::{
    model::ServicePortName,
    plan::write::{RangeKey, Tables},
};

/// Numbers that become tables of either family.
#[derive(Clone, Debug)]
pub(super) struct Junk {
    services: Vec<(u32, u32, u32, u32, u32)>,
    slots: Vec<u32>,
    backends: Vec<(u8, u32, u8, u32)>,
    names: BTreeMap<u32, u8>,
    frontends: Vec<(Option<u8>, u16, u32, u8, u8, bool)>,
    /// Row, number, bits.
    ranges: Vec<(u32, u8, Option<u32>)>,
    /// Words of NodePorts' filter.
    node_ports: Vec<(u32, u64)>,
}

pub(super) fn junk() -> impl Strategy<Value = Junk> {
    let row = 0_u32..70;
    let vip = prop::option::of(0_u8..8);
    let port = prop_oneof![Just(0), 80_u16..83, 30_000_u16..30_003];
    (
        prop::collection::vec(
            (0_u32..600, 0_u32..9, 0_u32..600, 0_u32..9, 0_u32..3),
            0..20,
        ),
        prop::collection::vec(0_u32..600, 0..40),
        prop::collection::vec((0_u8..12, row.clone(), 0_u8..32, 0_u32..5), 0..40),
        prop::collection::btree_map(row.clone(), 0_u8..6, 0..10),
        prop::collection::vec(
            (vip, port, row.clone(), 0_u8..8, 0_u8..6, any::<bool>()),
            0..10,
        ),
        prop::collection::vec((row, 0_u8..4, prop::option::of(0_u32..40)), 0..10),
        prop::collection::vec((0_u32..4096, any::<u64>()), 0..3),
    )
        .prop_map(
            |(services, slots, backends, names, frontends, ranges, node_ports)| Junk {
                services,
                slots,
                backends,
                names,
                frontends,
                ranges,
                node_ports,
            },
        )
}

impl Junk {
    pub(super) fn tables<F: TestFamily>(self) -> Tables<F> {
        let mut tables = Tables {
            services: self.services.into_iter().map(service).collect(),
            slots: self.slots,
            backends: self.backends.into_iter().map(backend::<F>).collect(),
            names: self
                .names
                .into_iter()
                .map(|(row, number)| (row, name(number)))
                .collect(),
            frontends: self.frontends.into_iter().map(frontend::<F>).collect(),
            source_ranges: self
                .ranges
                .into_iter()
                .map(source_range::<F>)
                .collect::<BTreeSet<_>>(),
            ..Tables::default()
        };
        let filter = &mut tables.filters[prefilter::NODE_PORTS as usize];
        filter.resize(prefilter::WORDS, 0);
        for (word, value) in self.node_ports {
            filter[word as usize] = value;
        }
        tables
    }
}

fn service((a, b, c, d, seconds): (u32, u32, u32, u32, u32)) -> Service {
    Service {
        cluster: SlotRange { first: a, count: b },
        local: SlotRange { first: c, count: d },
        session_affinity: SessionAffinity { seconds, round: a },
    }
}

fn backend<F: TestFamily>(
    (number, service, flags, generation): (u8, u32, u8, u32),
) -> Backend<F::Addr> {
    Backend {
        addr: F::addr(F::nth(244, number)),
        service,
        generation,
        port: BePort::new(8080),
        flags,
        epoch: number,
    }
}

fn name(number: u8) -> ServicePortName {
    ServicePortName {
        service: service_key(number),
        port: "p80".into(),
        protocol: Protocol::TCP,
    }
}

fn frontend<F: TestFamily>(
    (vip, port, service, flags, kind, tagged): (Option<u8>, u16, u32, u8, u8, bool),
) -> (FrontendKey<F::Addr>, Frontend) {
    let port = BePort::new(port);
    let key = match vip {
        Some(vip) => FrontendKey::new(F::addr(F::nth(96, vip)), port, Protocol::TCP),
        None => FrontendKey::node_port(port, Protocol::TCP),
    };
    let frontend = Frontend {
        service,
        flags,
        kind,
        tag: if tagged { key.tag() } else { 0 },
    };
    (key, frontend)
}

fn source_range<F: TestFamily>((row, number, bits): (u32, u8, Option<u32>)) -> RangeKey<F::Addr> {
    let cidr = range::<F>(number);
    let key = RangeKey::new(row, F::addr(cidr.network()), cidr.length());
    RangeKey {
        bits: bits.unwrap_or(key.bits),
        ..key
    }
}

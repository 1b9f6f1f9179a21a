//! `get services`: Service ports, with their frontends.

use std::{collections::BTreeMap, net::SocketAddr};

use ipnet::IpNet;
use proxy_common::{
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::{Address as _, Protocol},
    service::{Service, SlotRange},
    source_range::SourceRange,
};
use serde::Serialize;

use crate::{
    commands::get::render::{self, Row},
    model::{ObjectKey, ServicePortName},
    plan::write::{RangeKey, Tables},
    select::FrontendKind,
};

/// Number of source ranges shown in a row of the output.
const SHOWN_RANGES: usize = 3;

/// A Service port of one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ServiceRow {
    pub namespace: String,
    pub name: String,
    pub port: String,
    pub protocol: String,
    pub family: &'static str,
    /// The frontends; `*` stands for this node's addresses.
    pub frontends: Vec<String>,
    /// Their kinds, in the same order.
    pub kinds: Vec<&'static str>,
    /// Their traffic policies, in the same order.
    pub policy: String,
    /// True if only some clients may use the load balancer's addresses.
    pub restricted: bool,
    /// The prefixes of those clients.
    pub source_ranges: Vec<String>,
    /// Session affinity: after how long a client is forgotten.
    pub affinity_seconds: Option<u32>,
    /// Backends for traffic policy Cluster.
    pub cluster: SetRow,
    /// Backends for traffic policy Local.
    pub local: SetRow,
}

/// A set of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SetRow {
    pub backends: u32,
    /// The treatment of new flows if the set is empty.
    pub when_empty: Option<&'static str>,
}

impl From<SlotRange> for SetRow {
    fn from(range: SlotRange) -> Self {
        let when_empty = match range {
            SlotRange { count: 1.., .. } => None,
            SlotRange {
                first: SlotRange::DROP,
                ..
            } => Some("drop"),
            SlotRange { .. } => Some("reject"),
        };
        Self {
            backends: range.count,
            when_empty,
        }
    }
}

impl SetRow {
    fn cell(self) -> String {
        match self.when_empty {
            None => self.backends.to_string(),
            Some(verdict) => format!("0 ({verdict})"),
        }
    }
}

impl Row for ServiceRow {
    const HEADERS: &'static [&'static str] = &[
        "NAMESPACE",
        "NAME",
        "PORT",
        "PROTOCOL",
        "FAMILY",
        "KINDS",
        "FRONTENDS",
        "POLICY",
        "CLUSTER",
        "LOCAL",
        "AFFINITY",
        "SOURCES",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            render::cell(Some(&self.namespace)),
            render::cell(Some(&self.name)),
            render::cell(Some(&self.port)),
            self.protocol.clone(),
            self.family.to_owned(),
            render::list(&self.kinds),
            render::list(&self.frontends),
            render::cell(Some(&self.policy)),
            self.cluster.cell(),
            self.local.cell(),
            render::cell(self.affinity_seconds.map(|seconds| format!("{seconds}s"))),
            self.sources(),
        ]
    }
}

impl ServiceRow {
    fn sources(&self) -> String {
        if self.restricted && self.source_ranges.is_empty() {
            return "nobody".to_owned();
        }
        let shown = self.source_ranges.iter().take(SHOWN_RANGES);
        let list = render::list(shown);
        match self.source_ranges.len().checked_sub(SHOWN_RANGES) {
            Some(more @ 1..) => format!("{list} and {more} more"),
            _ => list,
        }
    }
}

/// One row for each row of `SERVICES` that has a name or a frontend.
pub fn rows<F: Family>(tables: &Tables<F>) -> Vec<ServiceRow> {
    let mut used: BTreeMap<u32, Vec<FrontendOf<'_, F>>> = BTreeMap::new();
    for row in tables.names.keys() {
        used.entry(*row).or_default();
    }
    for (key, frontend) in &tables.frontends {
        if frontend.service != Frontend::NO_SERVICE {
            used.entry(frontend.service)
                .or_default()
                .push((key, frontend));
        }
    }
    used.into_iter()
        .map(|(row, frontends)| service(tables, row, &frontends))
        .collect()
}

type FrontendOf<'a, F> = (&'a FrontendKey<<F as Family>::Addr>, &'a Frontend);

fn service<F: Family>(tables: &Tables<F>, row: u32, frontends: &[FrontendOf<'_, F>]) -> ServiceRow {
    let mut frontends = frontends.to_vec();
    frontends.sort_by_key(|(key, frontend)| (frontend.kind, **key));
    let policies: Vec<_> = frontends.iter().map(|(_, f)| policy(**f)).collect();
    let protocol = frontends.first().map(|(key, _)| key.protocol);
    let name = name(tables, row);
    let Service {
        cluster,
        local,
        session_affinity,
    } = tables
        .services
        .get(row as usize)
        .copied()
        .unwrap_or(Service::FREE);
    ServiceRow {
        namespace: name.service.namespace().to_owned(),
        name: name.service.name().to_owned(),
        port: name.port.to_string(),
        protocol: protocol.unwrap_or(name.protocol).to_string(),
        family: F::NAME,
        frontends: frontends.iter().map(|(key, _)| address::<F>(key)).collect(),
        kinds: frontends.iter().map(|(_, f)| kind(**f)).collect(),
        policy: policies.join(","),
        restricted: frontends
            .iter()
            .any(|(_, f)| f.flags & Frontend::SOURCE_RANGES != 0),
        source_ranges: source_ranges(tables, row),
        affinity_seconds: (session_affinity.seconds != 0).then_some(session_affinity.seconds),
        cluster: cluster.into(),
        local: local.into(),
    }
}

fn kind(frontend: Frontend) -> &'static str {
    FrontendKind::from_code(frontend.kind).map_or("unknown", FrontendKind::name)
}

fn policy(frontend: Frontend) -> &'static str {
    if frontend.flags & Frontend::LOCAL_SET != 0 {
        "Local"
    } else {
        "Cluster"
    }
}

fn address<F: Family>(key: &FrontendKey<F::Addr>) -> String {
    if key.addr.is_zero() {
        return format!("*:{}", key.port.get());
    }
    SocketAddr::new(F::ip(key.addr).into(), key.port.get()).to_string()
}

fn source_ranges<F: Family>(tables: &Tables<F>, row: u32) -> Vec<String> {
    let ranges = tables.source_ranges.iter();
    let ours = ranges.filter(|key| key.service() == Some(row));
    let net = |key: &RangeKey<F::Addr>| {
        let length = key.bits - SourceRange::<F::Addr>::SERVICE_BITS;
        IpNet::new(F::ip(key.range.client).into(), u8::try_from(length).ok()?).ok()
    };
    ours.filter_map(net).map(|net| net.to_string()).collect()
}

/// Returns the owner of a row of `SERVICES`; an empty name if it has none.
pub(super) fn name<F: Family>(tables: &Tables<F>, row: u32) -> ServicePortName {
    tables
        .names
        .get(&row)
        .cloned()
        .unwrap_or_else(|| ServicePortName {
            service: ObjectKey::new("", ""),
            port: "".into(),
            protocol: Protocol::ANY,
        })
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        family::{V4, V6},
        net::BePort,
        service::SessionAffinity,
    };

    use super::*;

    fn frontend(service: u32, flags: u8, kind: FrontendKind) -> Frontend {
        Frontend {
            service,
            flags,
            kind: kind.code(),
            tag: 0,
        }
    }

    fn tables<F: Family>(ip: F::Ip) -> Tables<F> {
        let key = |port| FrontendKey::new(F::addr(ip), BePort::new(port), Protocol::TCP);
        let name = |name: &str| ServicePortName {
            service: ObjectKey::new("default", name),
            port: "http".into(),
            protocol: Protocol::TCP,
        };
        let kinds = FrontendKind::ALL;
        let [cluster_ip, node_port, _, load_balancer] = kinds;
        Tables {
            frontends: BTreeMap::from([
                (
                    FrontendKey::address(F::addr(ip)),
                    frontend(Frontend::NO_SERVICE, 0, cluster_ip),
                ),
                (
                    FrontendKey::node_port(BePort::new(30080), Protocol::TCP),
                    frontend(0, Frontend::LOCAL_SET, node_port),
                ),
                (key(80), frontend(0, 0, cluster_ip)),
                (key(81), frontend(1, Frontend::LOCAL_SET, load_balancer)),
            ]),
            services: vec![
                Service {
                    cluster: SlotRange { first: 4, count: 2 },
                    local: SlotRange::drop(),
                    session_affinity: SessionAffinity {
                        seconds: 90,
                        round: 1,
                    },
                },
                Service::FREE,
            ],
            names: BTreeMap::from([(0, name("web")), (7, name("no-frontend"))]),
            source_ranges: (8..13)
                .map(|length| RangeKey::new(1, F::addr(ip), length))
                .collect(),
            ..Tables::default()
        }
    }

    fn shows_services<F: Family>(ip: F::Ip, net: &str) {
        let cells: Vec<_> = rows(&tables::<F>(ip)).iter().map(Row::cells).collect();
        let address = |port| SocketAddr::new(ip.into(), port).to_string();
        let both = format!("{},*:30080", address(80));
        let sources = format!("{net}/8,{net}/9,{net}/10 and 2 more");
        let expected = [
            [
                "default",
                "web",
                "http",
                "TCP",
                F::NAME,
                "ClusterIP,NodePort",
                &both,
                "Cluster,Local",
                "2",
                "0 (drop)",
                "90s",
                "-",
            ],
            [
                "-",
                "-",
                "-",
                "TCP",
                F::NAME,
                "LoadBalancer",
                &address(81),
                "Local",
                "0 (reject)",
                "0 (reject)",
                "-",
                &sources,
            ],
            [
                "default",
                "no-frontend",
                "http",
                "TCP",
                F::NAME,
                "-",
                "-",
                "-",
                "0 (reject)",
                "0 (reject)",
                "-",
                "-",
            ],
        ];
        assert_eq!(cells, expected);
        let mut tables = tables::<F>(ip);
        let last = tables
            .frontends
            .values_mut()
            .last()
            .expect("a load balancer's");
        last.flags |= Frontend::SOURCE_RANGES;
        tables.source_ranges.clear();
        assert_eq!(rows(&tables)[1].cells()[11], "nobody");
    }

    #[test]
    fn shows_the_services_of_both_families() {
        shows_services::<V4>([10, 0, 0, 0].into(), "10.0.0.0");
        shows_services::<V6>([0xfd00, 0, 0, 0, 0, 0, 0, 0].into(), "fd00::");
    }
}

//! `get services`: Service ports, with the addresses that clients dial.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use proxy_common::{
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::Protocol,
    service::{Run, Service},
};
use serde::Serialize;

use crate::{
    inspect::render::{self, Row},
    model::{ObjectKey, ServicePortName},
    plan::write::Tables,
};

/// A Service port of one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ServiceRow {
    pub namespace: String,
    pub name: String,
    pub port: String,
    pub protocol: String,
    pub family: &'static str,
    pub frontends: Vec<SocketAddr>,
    /// Traffic policies of the front ends.
    pub policy: String,
    /// Backends for traffic policy Cluster.
    pub cluster: SetRow,
    /// Backends for traffic policy Local.
    pub local: SetRow,
}

/// A set of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SetRow {
    pub backends: u32,
    /// What becomes of new flows if the set is empty.
    pub when_empty: Option<&'static str>,
}

impl From<Run> for SetRow {
    fn from(run: Run) -> Self {
        let when_empty = match run {
            Run { count: 1.., .. } => None,
            Run {
                first: Run::DROP, ..
            } => Some("drop"),
            Run { .. } => Some("reject"),
        };
        Self {
            backends: run.count,
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
        "FRONTENDS",
        "POLICY",
        "CLUSTER",
        "LOCAL",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            render::cell(Some(&self.namespace)),
            render::cell(Some(&self.name)),
            render::cell(Some(&self.port)),
            self.protocol.clone(),
            self.family.to_owned(),
            render::list(&self.frontends),
            render::cell(Some(&self.policy)),
            self.cluster.cell(),
            self.local.cell(),
        ]
    }
}

/// One row for each row of `SERVICES` that has a name or a front end.
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
    let policies: BTreeSet<_> = frontends
        .iter()
        .map(|(_, frontend)| policy(**frontend))
        .collect();
    let policies: Vec<_> = policies.into_iter().collect();
    let protocol = frontends.first().map(|(key, _)| key.protocol);
    let name = name(tables, row);
    let sets = tables.services.get(row as usize).copied();
    let Service { cluster, local, .. } = sets.unwrap_or(Service::FREE);
    ServiceRow {
        namespace: name.service.namespace,
        name: name.service.name,
        port: name.port,
        protocol: protocol.unwrap_or(name.protocol).to_string(),
        family: F::NAME,
        frontends: frontends.iter().map(|(key, _)| address::<F>(key)).collect(),
        policy: policies.join(","),
        cluster: cluster.into(),
        local: local.into(),
    }
}

fn policy(frontend: Frontend) -> &'static str {
    if frontend.flags & Frontend::LOCAL_SET != 0 {
        "Local"
    } else {
        "Cluster"
    }
}

fn address<F: Family>(key: &FrontendKey<F::Addr>) -> SocketAddr {
    SocketAddr::new(F::ip(key.addr).into(), key.port.get())
}

/// Whose a row of `SERVICES` is; empty if nobody's.
pub(super) fn name<F: Family>(tables: &Tables<F>, row: u32) -> ServicePortName {
    tables
        .names
        .get(&row)
        .cloned()
        .unwrap_or_else(|| ServicePortName {
            service: ObjectKey::new("", ""),
            port: String::new(),
            protocol: Protocol::ANY,
        })
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        family::{V4, V6},
        net::BePort,
    };

    use super::*;

    fn frontend(service: u32, flags: u8) -> Frontend {
        Frontend {
            service,
            flags,
            kind: Frontend::CLUSTER_IP,
            tag: 0,
        }
    }

    fn tables<F: Family>(ip: F::Ip) -> Tables<F> {
        let key = |port| FrontendKey::new(F::addr(ip), BePort::new(port), Protocol::TCP);
        let name = |name: &str| ServicePortName {
            service: ObjectKey::new("default", name),
            port: "http".to_owned(),
            protocol: Protocol::TCP,
        };
        Tables {
            frontends: BTreeMap::from([
                (
                    FrontendKey::address(F::addr(ip)),
                    frontend(Frontend::NO_SERVICE, 0),
                ),
                (key(80), frontend(0, 0)),
                (key(81), frontend(1, Frontend::LOCAL_SET)),
            ]),
            services: vec![
                Service {
                    cluster: Run { first: 4, count: 2 },
                    local: Run::drop(),
                    ..Service::FREE
                },
                Service::FREE,
            ],
            names: BTreeMap::from([(0, name("web")), (7, name("no-frontend"))]),
            ..Tables::default()
        }
    }

    fn shows_services<F: Family>(ip: F::Ip) {
        let rows = rows(&tables::<F>(ip));
        let cells: Vec<_> = rows.iter().map(Row::cells).collect();
        let address = |port| SocketAddr::new(ip.into(), port).to_string();
        let expected = [
            [
                "default",
                "web",
                "http",
                "TCP",
                F::NAME,
                &address(80),
                "Cluster",
                "2",
                "0 (drop)",
            ],
            [
                "-",
                "-",
                "-",
                "TCP",
                F::NAME,
                &address(81),
                "Local",
                "0 (reject)",
                "0 (reject)",
            ],
            [
                "default",
                "no-frontend",
                "http",
                "TCP",
                F::NAME,
                "-",
                "-",
                "0 (reject)",
                "0 (reject)",
            ],
        ];
        assert_eq!(cells, expected);
    }

    #[test]
    fn shows_the_services_of_both_families() {
        shows_services::<V4>([10, 96, 0, 1].into());
        shows_services::<V6>([0xfd00, 0, 0, 0, 0, 0, 0, 1].into());
    }
}

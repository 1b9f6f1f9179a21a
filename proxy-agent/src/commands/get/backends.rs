//! `get backends`: endpoints of Service ports.

use std::{collections::BTreeSet, net::SocketAddr};

use proxy_common::{
    backend::Backend,
    family::Family,
    service::{Service, SlotRange},
};
use serde::Serialize;

use crate::{
    commands::get::{
        render::{self, Row},
        services,
    },
    plan::write::Tables,
};

/// An endpoint of a Service port.
#[expect(clippy::struct_excessive_bools, reason = "any of them may hold")]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BackendRow {
    pub namespace: String,
    pub name: String,
    pub port: String,
    pub protocol: String,
    pub family: &'static str,
    pub address: SocketAddr,
    pub serving: bool,
    /// On this node.
    pub here: bool,
    /// In the set for traffic policy Cluster.
    pub cluster: bool,
    /// In the set for traffic policy Local.
    pub local: bool,
    /// Row of `BACKENDS`, and how often it was given to an endpoint.
    pub row: u32,
    pub generation: u32,
    /// Number of times that clients with session affinity to it had to be forgotten, modulo
    /// 256.
    pub epoch: u8,
}

impl Row for BackendRow {
    const HEADERS: &'static [&'static str] = &[
        "NAMESPACE",
        "NAME",
        "PORT",
        "PROTOCOL",
        "FAMILY",
        "ADDRESS",
        "SERVING",
        "HERE",
        "CLUSTER",
        "LOCAL",
        "ROW",
        "GENERATION",
        "EPOCH",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            render::cell(Some(&self.namespace)),
            render::cell(Some(&self.name)),
            render::cell(Some(&self.port)),
            self.protocol.clone(),
            self.family.to_owned(),
            self.address.to_string(),
            render::yes(self.serving),
            render::yes(self.here),
            render::yes(self.cluster),
            render::yes(self.local),
            self.row.to_string(),
            self.generation.to_string(),
            self.epoch.to_string(),
        ]
    }
}

/// One row for each row of `BACKENDS` in use.
pub fn rows<F: Family>(tables: &Tables<F>) -> Vec<BackendRow> {
    let members = |range: fn(&Service) -> SlotRange| -> BTreeSet<u32> {
        let runs = tables.services.iter().map(range);
        runs.flat_map(|range| slots(&tables.slots, range)).collect()
    };
    let cluster = members(|service| service.cluster);
    let local = members(|service| service.local);
    (0..)
        .zip(&tables.backends)
        .filter(|(_, backend)| backend.flags & Backend::<F::Addr>::USED != 0)
        .map(|(row, backend)| {
            let name = services::name(tables, backend.service);
            BackendRow {
                namespace: name.service.namespace().to_owned(),
                name: name.service.name().to_owned(),
                port: name.port.to_string(),
                protocol: name.protocol.to_string(),
                family: F::NAME,
                address: SocketAddr::new(F::ip(backend.addr).into(), backend.port.get()),
                serving: backend.flags & Backend::<F::Addr>::SERVING != 0,
                here: backend.flags & Backend::<F::Addr>::HERE != 0,
                cluster: cluster.contains(&row),
                local: local.contains(&row),
                row,
                generation: backend.generation,
                epoch: backend.epoch,
            }
        })
        .collect()
}

/// The backend rows in a range of slots. Slots at the end that hold row 0 may
/// have been left out of the table.
fn slots(slots: &[u32], range: SlotRange) -> impl Iterator<Item = u32> {
    let first = range.first as usize;
    let count = range.count as usize;
    let left_out = (count > slots.len().saturating_sub(first)).then_some(0);
    slots
        .iter()
        .skip(first)
        .take(count)
        .copied()
        .chain(left_out)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proxy_common::{
        family::{V4, V6},
        net::{BePort, Protocol},
    };

    use super::*;
    use crate::model::{ObjectKey, ServicePortName};

    fn backend<F: Family>(ip: F::Ip, flags: u8) -> Backend<F::Addr> {
        Backend {
            addr: F::addr(ip),
            service: 0,
            generation: 3,
            port: BePort::new(8080),
            flags,
            epoch: 5,
        }
    }

    /// Row 0 in both sets, row 1 in the cluster set and terminating, row 2 in
    /// no set, row 3 given back.
    fn tables<F: Family>(ip: F::Ip) -> Tables<F> {
        let used = Backend::<F::Addr>::USED;
        let serving = used | Backend::<F::Addr>::SERVING;
        let name = ServicePortName {
            service: ObjectKey::new("default", "web"),
            port: "http".into(),
            protocol: Protocol::TCP,
        };
        Tables {
            services: vec![Service {
                cluster: SlotRange { first: 0, count: 2 },
                local: SlotRange { first: 2, count: 1 },
                ..Service::FREE
            }],
            slots: vec![0, 1],
            backends: [serving | Backend::<F::Addr>::HERE, used, serving, 0]
                .map(|flags| backend::<F>(ip, flags))
                .into(),
            names: BTreeMap::from([(0, name)]),
            ..Tables::default()
        }
    }

    fn shows_membership<F: Family>(ip: F::Ip) {
        let rows = rows(&tables::<F>(ip));
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (row.row, row.serving, row.here, row.cluster, row.local))
            .collect();
        assert_eq!(
            shown,
            [
                (0, true, true, true, true),
                (1, false, false, true, false),
                (2, true, false, false, false)
            ]
        );
        assert_eq!(rows[0].address, SocketAddr::new(ip.into(), 8080));
        let ages = (rows[0].generation, rows[0].epoch);
        assert_eq!((rows[0].name.as_str(), ages), ("web", (3, 5)));
    }

    #[test]
    fn shows_the_sets_of_both_families() {
        shows_membership::<V4>([10, 244, 0, 1].into());
        shows_membership::<V6>([0xfd00, 0, 0, 0, 0, 0, 0, 1].into());
    }
}

//! `get affinity`: clients that session affinity remembers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    affinity::{Affinity, AffinityKey},
    backend::Backend,
    family::Family,
};
use serde::Serialize;

use crate::{
    commands::get::{
        flows::idle_seconds,
        render::{self, Row},
        services,
    },
    plan::write::Tables,
};

/// A client, and where its next connection goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AffinityRow {
    pub namespace: String,
    pub name: String,
    pub port: String,
    pub protocol: String,
    pub family: &'static str,
    /// As it is before any masquerade.
    pub client: IpAddr,
    /// For frontends with which traffic policy.
    pub set: &'static str,
    pub backend: SocketAddr,
    /// Time since the last new connection.
    pub idle_seconds: u64,
    /// Time until it is forgotten, if no other comes.
    pub left_seconds: u64,
}

impl Row for AffinityRow {
    const HEADERS: &'static [&'static str] = &[
        "SERVICE", "PROTOCOL", "CLIENT", "SET", "BACKEND", "IDLE", "LEFT",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            render::service(&self.namespace, &self.name, &self.port),
            self.protocol.clone(),
            self.client.to_string(),
            self.set.to_owned(),
            self.backend.to_string(),
            format!("{}s", self.idle_seconds),
            format!("{}s", self.left_seconds),
        ]
    }
}

/// One row for each entry of `AFFINITY` that still counts: the programs pass
/// over the others, until new ones take their room.
pub fn rows<F: Family>(
    entries: &BTreeMap<AffinityKey<F::Addr>, Affinity>,
    tables: &Tables<F>,
    now: u32,
) -> Vec<AffinityRow> {
    entries
        .iter()
        .filter_map(|(key, affinity)| row::<F>(key, affinity, tables, now))
        .collect()
}

fn row<F: Family>(
    key: &AffinityKey<F::Addr>,
    affinity: &Affinity,
    tables: &Tables<F>,
    now: u32,
) -> Option<AffinityRow> {
    let (set, member) = match key.set {
        0 => ("Cluster", Backend::<F::Addr>::CLUSTER),
        _ => ("Local", Backend::<F::Addr>::LOCAL),
    };
    let session_affinity = tables.services.get(key.service as usize)?.session_affinity;
    let backend = tables.backends.get(affinity.backend as usize)?;
    let idle_seconds = idle_seconds(affinity.last_used, now);
    let left_seconds = u64::from(session_affinity.seconds).checked_sub(idle_seconds)?;
    let counts = session_affinity.seconds != 0
        && session_affinity.round == affinity.round
        && (backend.generation, backend.epoch) == (affinity.generation, affinity.epoch)
        && backend.flags & member != 0;
    let name = counts.then(|| services::name(tables, key.service))?;
    Some(AffinityRow {
        namespace: name.service.namespace().to_owned(),
        name: name.service.name().to_owned(),
        port: name.port.to_string(),
        protocol: name.protocol.to_string(),
        family: F::NAME,
        client: F::ip(key.client).into(),
        set,
        backend: SocketAddr::new(F::ip(backend.addr).into(), backend.port.get()),
        idle_seconds,
        left_seconds,
    })
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        family::{V4, V6},
        net::{BePort, Protocol},
        service::{Service, SessionAffinity},
    };
    use rstest::rstest;

    use super::*;
    use crate::model::{ObjectKey, ServicePortName};

    const NOW: u32 = 1000;

    fn tables<F: Family>(ip: F::Ip) -> Tables<F> {
        let name = ServicePortName {
            service: ObjectKey::new("default", "web"),
            port: "http".into(),
            protocol: Protocol::UDP,
        };
        let backend = Backend {
            addr: F::addr(ip),
            service: 0,
            generation: 3,
            port: BePort::new(8080),
            flags: Backend::<F::Addr>::USED | Backend::<F::Addr>::LOCAL,
            epoch: 2,
        };
        Tables {
            services: vec![Service {
                session_affinity: SessionAffinity {
                    seconds: 60,
                    round: 4,
                },
                ..Service::FREE
            }],
            backends: vec![backend],
            names: BTreeMap::from([(0, name)]),
            ..Tables::default()
        }
    }

    const REMEMBERED: Affinity = Affinity {
        backend: 0,
        generation: 3,
        round: 4,
        last_used: NOW - 10,
        epoch: 2,
        zero: [0; 3],
    };

    fn shown<F: Family>(ip: F::Ip, set: u32, affinity: Affinity) -> Vec<Vec<String>> {
        let client = F::addr(ip);
        let key = AffinityKey {
            client,
            service: 0,
            set,
        };
        let rows = rows::<F>(&BTreeMap::from([(key, affinity)]), &tables::<F>(ip), NOW);
        rows.iter().map(Row::cells).collect()
    }

    fn shows_clients<F: Family>(ip: F::Ip) {
        let backend = SocketAddr::new(ip.into(), 8080).to_string();
        let client = ip.to_string();
        assert_eq!(
            shown::<F>(ip, 1, REMEMBERED),
            [[
                "default/web:http",
                "UDP",
                &client,
                "Local",
                &backend,
                "10s",
                "50s"
            ]]
        );
    }

    #[test]
    fn shows_the_clients_of_both_families() {
        shows_clients::<V4>([10, 0, 0, 1].into());
        shows_clients::<V6>([0xfd00, 0, 0, 0, 0, 0, 0, 1].into());
    }

    /// S72, S74, S75: what the programs pass over is not shown.
    #[rstest]
    #[case::another_endpoint(1, Affinity { generation: 2, ..REMEMBERED })]
    #[case::it_had_left(1, Affinity { epoch: 1, ..REMEMBERED })]
    #[case::affinity_was_off(1, Affinity { round: 3, ..REMEMBERED })]
    #[case::too_long_ago(1, Affinity { last_used: NOW - 60, ..REMEMBERED })]
    #[case::not_in_the_set(0, REMEMBERED)]
    #[case::no_such_row(1, Affinity { backend: 9, ..REMEMBERED })]
    fn leaves_out_what_counts_no_more(#[case] set: u32, #[case] affinity: Affinity) {
        let shown = shown::<V6>([0xfd00, 0, 0, 0, 0, 0, 0, 1].into(), set, affinity);
        assert!(shown.is_empty(), "{shown:?}");
    }
}

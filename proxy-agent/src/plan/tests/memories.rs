//! Clients that session affinity remembers, as the programs would keep them.

use std::collections::BTreeSet;

use proxy_common::{affinity::Affinity, backend::Backend, family::Family};

use crate::{model::ServicePortName, plan::write::Tables, select::DesiredPort};

/// The entries of `AFFINITY` so far, each with whether it should still count.
#[derive(Debug)]
pub(super) struct Memories<F: Family>(Vec<Entry<F>>);

#[derive(Debug)]
struct Entry<F: Family> {
    port: ServicePortName,
    endpoint: (F::Ip, u16),
    /// Key in `AFFINITY`, but for the client.
    service: u32,
    value: Affinity,
    counts: bool,
}

impl<F: Family> Default for Memories<F> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<F: Family> Memories<F> {
    /// Clients come and use every endpoint they may.
    pub(super) fn remember(&mut self, ports: &[DesiredPort<F>], tables: &Tables<F>) {
        let with_affinity: BTreeSet<_> = with_affinity(ports).collect();
        for (&service, port) in &tables.names {
            let rows = (0..).zip(&tables.backends);
            let ours = rows.filter(|(_, backend)| backend.service == service && backend.flags != 0);
            for (row, backend) in ours {
                let endpoint = (F::ip(backend.addr), backend.port.get());
                if with_affinity.contains(&(port, endpoint)) {
                    self.0.push(Entry {
                        port: port.clone(),
                        endpoint,
                        service,
                        value: Affinity {
                            backend: row,
                            generation: backend.generation,
                            round: tables.services[service as usize].session_affinity.round,
                            last_used: 0,
                            epoch: backend.epoch,
                            zero: [0; 3],
                        },
                        counts: true,
                    });
                }
            }
        }
    }

    /// The cluster is another now: what it does not allow any more is over.
    pub(super) fn forget(&mut self, ports: &[DesiredPort<F>]) {
        let with_affinity: BTreeSet<_> = with_affinity(ports).collect();
        for entry in &mut self.0 {
            entry.counts &= with_affinity.contains(&(&entry.port, entry.endpoint));
        }
    }

    pub(super) fn assert_counted(&self, tables: &Tables<F>) {
        for entry in &self.0 {
            let session_affinity = tables.services[entry.service as usize].session_affinity;
            let backend = tables.backends[entry.value.backend as usize];
            let sets = Backend::<F::Addr>::CLUSTER | Backend::<F::Addr>::LOCAL;
            let counts = session_affinity.seconds != 0
                && session_affinity.round == entry.value.round
                && backend.generation == entry.value.generation
                && backend.epoch == entry.value.epoch
                && backend.flags & sets != 0;
            assert_eq!(counts, entry.counts, "{entry:?}");
        }
    }
}

/// The ports with affinity, with their endpoints that take new flows.
fn with_affinity<F: Family>(
    ports: &[DesiredPort<F>],
) -> impl Iterator<Item = (&ServicePortName, (F::Ip, u16))> {
    let with_affinity = ports.iter().filter(|port| port.affinity.is_some());
    with_affinity.flat_map(|port| {
        let used = port.endpoints.iter();
        used.filter(|(_, used)| used.cluster || used.local)
            .map(|(endpoint, _)| (&port.name, *endpoint))
    })
}

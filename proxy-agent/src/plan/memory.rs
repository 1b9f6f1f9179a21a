//! Tables in memory: what the kernel does with the writes, for tests and for
//! measuring the agent without a kernel.

use ipnet::IpNet;
use proxy_common::{
    backend::Backend,
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::{Address as _, BePort},
    service::{Service, SlotRange},
    table::Table,
};

use crate::plan::{
    filter::FlowEnds,
    write::{Capacity, RangeKey, Set, Tables, Write},
};

/// The tables of one family, in memory.
#[derive(Clone, Debug)]
pub struct Memory<F: Family> {
    pub tables: Tables<F>,
    pub flows: Vec<FlowEnds<F::Addr>>,
    pub capacity: Capacity,
    /// Fails the write after this many more, once.
    pub fail_after: Option<usize>,
}

/// A write that was told to fail, or that no table of this size can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write to {table} failed")]
pub struct Failed {
    pub table: Table,
}

impl<F: Family> Memory<F> {
    /// Empty tables.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            tables: Tables::default(),
            flows: Vec::new(),
            capacity,
            fail_after: None,
        }
    }

    /// Does one write.
    pub fn write(&mut self, write: &Write<F>) -> Result<(), Failed> {
        let failed = Failed {
            table: write.table(),
        };
        if let Some(left) = &mut self.fail_after {
            if *left == 0 {
                self.fail_after = None;
                return Err(failed);
            }
            *left -= 1;
        }
        self.change(write).ok_or(failed)
    }

    /// Does one write, if the tables have room for it.
    fn change(&mut self, write: &Write<F>) -> Option<()> {
        match write {
            Write::Filter {
                filter,
                word,
                value,
            } => {
                let filter = self.tables.filters.get_mut(*filter as usize)?;
                *at(filter, *word, u32::MAX, 0)? = *value;
            }
            Write::Backend { row, backend } => *self.backend(*row)? = *backend,
            Write::BackendState { row, flags, epoch } => {
                let backend = self.backend(*row)?;
                (backend.flags, backend.epoch) = (*flags, *epoch);
            }
            Write::Slots { first, backends } => {
                for (slot, backend) in (*first..).zip(backends) {
                    *at(&mut self.tables.slots, slot, self.capacity.slots, 0)? = *backend;
                }
            }
            Write::Service { row, service } => *self.service(*row)? = *service,
            Write::SlotRange { row, set, range } => match set {
                Set::Cluster => self.service(*row)?.cluster = *range,
                Set::Local => self.service(*row)?.local = *range,
            },
            Write::SessionAffinity {
                row,
                session_affinity,
            } => self.service(*row)?.session_affinity = *session_affinity,
            Write::SourceRange { key } => {
                let ranges = &mut self.tables.source_ranges;
                let full = ranges.len() >= self.capacity.source_ranges as usize;
                if full && !ranges.contains(key) {
                    return None;
                }
                ranges.insert(*key);
            }
            Write::DeleteSourceRange { key } => {
                self.tables.source_ranges.remove(key);
            }
            Write::Name { row, name } => {
                self.tables.names.insert(*row, name.clone());
            }
            Write::DeleteName { row } => {
                self.tables.names.remove(row);
            }
            Write::Frontend { key, frontend } => {
                let frontends = &mut self.tables.frontends;
                let full = frontends.len() >= self.capacity.frontends as usize;
                if full && !frontends.contains_key(key) {
                    return None;
                }
                frontends.insert(*key, *frontend);
            }
            Write::DeleteFrontend { key } => {
                self.tables.frontends.remove(key);
            }
        }
        Some(())
    }

    fn service(&mut self, row: u32) -> Option<&mut Service> {
        let capacity = self.capacity.services;
        at(&mut self.tables.services, row, capacity, Service::FREE)
    }

    fn backend(&mut self, row: u32) -> Option<&mut Backend<F::Addr>> {
        let free = Backend {
            addr: F::Addr::ZERO,
            service: 0,
            generation: 0,
            port: BePort::ZERO,
            flags: 0,
            epoch: 0,
        };
        let capacity = self.capacity.backends;
        at(&mut self.tables.backends, row, capacity, free)
    }

    /// Returns what the programs would do with a new flow to this frontend, of a client
    /// that its traffic policy binds.
    pub fn resolve(&self, key: &FrontendKey<F::Addr>) -> Resolved<F> {
        self.resolve_from(key, true)
    }

    /// The same for a pod or process of this node, which a traffic policy of
    /// other frontends than cluster IPs does not bind (S39).
    pub fn resolve_here(&self, key: &FrontendKey<F::Addr>) -> Resolved<F> {
        let frontend = self.tables.frontends.get(key);
        self.resolve_from(
            key,
            frontend.is_some_and(|f| f.kind == Frontend::CLUSTER_IP),
        )
    }

    fn resolve_from(&self, key: &FrontendKey<F::Addr>, bound: bool) -> Resolved<F> {
        let tables = &self.tables;
        let Some(frontend) = tables.frontends.get(key).filter(|f| f.tag == key.tag()) else {
            return if tables
                .frontends
                .contains_key(&FrontendKey::address(key.addr))
            {
                Resolved::UnknownPort
            } else {
                Resolved::NotOurs
            };
        };
        let Some(service) = tables.services.get(frontend.service as usize) else {
            return Resolved::Broken;
        };
        let range = if bound && frontend.flags & Frontend::LOCAL_SET != 0 {
            service.local
        } else {
            service.cluster
        };
        self.resolve_range(range)
    }

    fn resolve_range(&self, range: SlotRange) -> Resolved<F> {
        if range.count == 0 {
            return if range == SlotRange::drop() {
                Resolved::Drop
            } else {
                Resolved::Reject
            };
        }
        let mut backends = Vec::new();
        for slot in range.first..range.first + range.count {
            let Some(row) = self.tables.slots.get(slot as usize) else {
                return Resolved::Broken;
            };
            match self.tables.backends.get(*row as usize) {
                Some(backend) if backend.flags & Backend::<F::Addr>::USED != 0 => {
                    backends.push((F::ip(backend.addr), backend.port.get()));
                }
                _ => return Resolved::Broken,
            }
        }
        Resolved::Backends(backends)
    }

    /// Returns whether the programs would let a client use this frontend (S58, S59).
    pub fn admits(&self, key: &FrontendKey<F::Addr>, client: F::Ip) -> bool {
        let Some(frontend) = self.tables.frontends.get(key) else {
            return true;
        };
        let holds = |range: &RangeKey<F::Addr>| {
            let covers = |length: u32| {
                let length = u8::try_from(length).ok()?;
                IpNet::new(F::ip(range.range.client).into(), length).ok()
            };
            range.service() == Some(frontend.service)
                && covers(range.bits - 32).is_some_and(|net| net.contains(&client.into()))
        };
        frontend.flags & Frontend::SOURCE_RANGES == 0
            || self.tables.source_ranges.iter().any(holds)
            || (frontend.flags & Frontend::ALLOW_ITSELF != 0 && F::addr(client) == key.addr)
    }
}

/// Verdict on a new flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved<F: Family> {
    NotOurs,
    UnknownPort,
    Reject,
    Drop,
    Backends(Vec<(F::Ip, u16)>),
    /// The tables lead to nowhere. Must never be seen.
    Broken,
}

/// The entry at `index`, grown to it if the table is that large.
fn at<T: Clone>(table: &mut Vec<T>, index: u32, capacity: u32, empty: T) -> Option<&mut T> {
    if index >= capacity {
        return None;
    }
    let index = index as usize;
    if table.len() <= index {
        table.resize(index + 1, empty);
    }
    table.get_mut(index)
}

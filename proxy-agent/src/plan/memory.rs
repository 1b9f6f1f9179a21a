//! Tables in memory: what the kernel does with the writes, for tests and for
//! measuring the agent without a kernel.

use proxy_common::{
    backend::Backend,
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::{Address as _, BePort},
    service::{Run, Service},
};

use crate::plan::write::{Capacity, Set, Tables, Write};

/// The tables of one family, in memory.
#[derive(Clone, Debug)]
pub struct Memory<F: Family> {
    pub tables: Tables<F>,
    pub capacity: Capacity,
    /// Fails the write after this many more, once.
    pub fail_after: Option<usize>,
}

/// A write that was told to fail, or that no table of this size can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write to {table} failed")]
pub struct Failed {
    pub table: &'static str,
}

impl<F: Family> Memory<F> {
    /// Empty tables.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            tables: Tables::default(),
            capacity,
            fail_after: None,
        }
    }

    /// Does one write.
    pub fn write(&mut self, write: &Write<F>) -> Result<(), Failed> {
        let failed = Err(Failed {
            table: write.table(),
        });
        if let Some(left) = &mut self.fail_after {
            if *left == 0 {
                self.fail_after = None;
                return failed;
            }
            *left -= 1;
        }
        let tables = &mut self.tables;
        let free = Backend {
            addr: F::Addr::ZERO,
            service: 0,
            generation: 0,
            port: BePort::ZERO,
            flags: 0,
            epoch: 0,
        };
        match write {
            Write::Filter {
                filter,
                word,
                value,
            } => match at(&mut tables.filters[*filter as usize], *word, u32::MAX, 0) {
                Some(entry) => *entry = *value,
                None => return failed,
            },
            Write::Backend { row, backend } => {
                match at(&mut tables.backends, *row, self.capacity.backends, free) {
                    Some(entry) => *entry = *backend,
                    None => return failed,
                }
            }
            Write::BackendFlags { row, flags } => {
                match at(&mut tables.backends, *row, self.capacity.backends, free) {
                    Some(entry) => entry.flags = *flags,
                    None => return failed,
                }
            }
            Write::Slots { first, backends } => {
                for (slot, backend) in (*first..).zip(backends) {
                    match at(&mut tables.slots, slot, self.capacity.slots, 0) {
                        Some(entry) => *entry = *backend,
                        None => return failed,
                    }
                }
            }
            Write::Service { row, service } => {
                match at(
                    &mut tables.services,
                    *row,
                    self.capacity.services,
                    Service::FREE,
                ) {
                    Some(entry) => *entry = *service,
                    None => return failed,
                }
            }
            Write::Run { row, set, run } => {
                match at(
                    &mut tables.services,
                    *row,
                    self.capacity.services,
                    Service::FREE,
                ) {
                    Some(entry) => match set {
                        Set::Cluster => entry.cluster = *run,
                        Set::Local => entry.local = *run,
                    },
                    None => return failed,
                }
            }
            Write::Name { row, name } => {
                tables.names.insert(*row, name.clone());
            }
            Write::DeleteName { row } => {
                tables.names.remove(row);
            }
            Write::Frontend { key, frontend } => {
                if tables.frontends.len() >= self.capacity.frontends as usize
                    && !tables.frontends.contains_key(key)
                {
                    return failed;
                }
                tables.frontends.insert(*key, *frontend);
            }
            Write::DeleteFrontend { key } => {
                tables.frontends.remove(key);
            }
        }
        Ok(())
    }

    /// What the programs would do with a new flow to this front end.
    pub fn resolve(&self, key: &FrontendKey<F::Addr>) -> Resolved<F> {
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
        let run = if frontend.flags & Frontend::LOCAL_SET == 0 {
            service.cluster
        } else {
            service.local
        };
        if run.count == 0 {
            return if run == Run::drop() {
                Resolved::Drop
            } else {
                Resolved::Reject
            };
        }
        let mut backends = Vec::new();
        for slot in run.first..run.first + run.count {
            let Some(row) = tables.slots.get(slot as usize) else {
                return Resolved::Broken;
            };
            match tables.backends.get(*row as usize) {
                Some(backend) if backend.flags & Backend::<F::Addr>::USED != 0 => {
                    backends.push((F::ip(backend.addr), backend.port.get()));
                }
                _ => return Resolved::Broken,
            }
        }
        Resolved::Backends(backends)
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

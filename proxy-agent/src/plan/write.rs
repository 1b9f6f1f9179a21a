//! Single changes of the tables, and the tables themselves.

use std::collections::BTreeMap;

use proxy_common::{
    backend::Backend,
    family::Family,
    frontend::{Frontend, FrontendKey},
    service::{Run, Service},
};

use crate::model::ServicePortName;

/// One change of one table of one family. Each is atomic for the programs that
/// read: they see it done or not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write<F: Family> {
    /// Sets one word of a prefilter.
    Filter {
        filter: u32,
        word: u32,
        value: u64,
    },
    /// Fills a row of `BACKENDS` that no slot names.
    Backend {
        row: u32,
        backend: Backend<F::Addr>,
    },
    /// Changes the flags byte of a row of `BACKENDS` in place.
    BackendFlags {
        row: u32,
        flags: u8,
    },
    /// Fills slots that no run covers.
    Slots {
        first: u32,
        backends: Vec<u32>,
    },
    /// Fills a row of `SERVICES` that no front end names.
    Service {
        row: u32,
        service: Service,
    },
    /// Replaces one set of a Service port, by one eight-byte store.
    Run {
        row: u32,
        set: Set,
        run: Run,
    },
    /// Names the owner of a row of `SERVICES`.
    Name {
        row: u32,
        name: ServicePortName,
    },
    DeleteName {
        row: u32,
    },
    Frontend {
        key: FrontendKey<F::Addr>,
        frontend: Frontend,
    },
    DeleteFrontend {
        key: FrontendKey<F::Addr>,
    },
}

/// Which of a Service port's two sets of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    Cluster,
    Local,
}

impl<F: Family> Write<F> {
    /// The table that it changes, without the family's suffix.
    pub fn table(&self) -> &'static str {
        match self {
            Self::Filter { .. } => "PREFILTER",
            Self::Backend { .. } | Self::BackendFlags { .. } => "BACKENDS",
            Self::Slots { .. } => "SLOTS",
            Self::Service { .. } | Self::Run { .. } => "SERVICES",
            Self::Name { .. } | Self::DeleteName { .. } => "NAMES",
            Self::Frontend { .. } | Self::DeleteFrontend { .. } => "FRONTENDS",
        }
    }
}

/// Sizes of one family's tables, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub frontends: u32,
    pub services: u32,
    pub slots: u32,
    pub backends: u32,
}

/// One family's tables as they are. Rows at the end that were never used may
/// be left out of the vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables<F: Family> {
    pub frontends: BTreeMap<FrontendKey<F::Addr>, Frontend>,
    pub services: Vec<Service>,
    pub slots: Vec<u32>,
    pub backends: Vec<Backend<F::Addr>>,
    pub names: BTreeMap<u32, ServicePortName>,
    /// Words of the filters of front ends and of backends.
    pub filters: [Vec<u64>; 2],
}

impl<F: Family> Default for Tables<F> {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            services: Vec::new(),
            slots: Vec::new(),
            backends: Vec::new(),
            names: BTreeMap::new(),
            filters: [Vec::new(), Vec::new()],
        }
    }
}

//! Single changes of the tables, and the tables themselves.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::{
    backend::Backend,
    family::Family,
    frontend::{Frontend, FrontendKey},
    net::Address,
    prefilter,
    service::{Service, SessionAffinity, SlotRange},
    source_range::SourceRange,
    table::Table,
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
    /// Changes flags and epoch of a row of `BACKENDS` in place, by one two-byte
    /// store.
    BackendState {
        row: u32,
        flags: u8,
        epoch: u8,
    },
    /// Fills slots that no range covers.
    Slots {
        first: u32,
        backends: Vec<u32>,
    },
    /// Fills a row of `SERVICES` that no frontend names.
    Service {
        row: u32,
        service: Service,
    },
    /// Replaces one set of a Service port, by one eight-byte store.
    SlotRange {
        row: u32,
        set: Set,
        range: SlotRange,
    },
    /// Changes the session affinity of a Service port, by one eight-byte store.
    SessionAffinity {
        row: u32,
        session_affinity: SessionAffinity,
    },
    /// Lets clients use the restricted frontends of a Service port.
    SourceRange {
        key: RangeKey<F::Addr>,
    },
    DeleteSourceRange {
        key: RangeKey<F::Addr>,
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

/// One of the two sets of backends of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    Cluster,
    Local,
}

/// Key of `SOURCE_RANGES`, as the kernel takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeKey<A> {
    pub range: SourceRange<A>,
    /// Number of bits of `range` that count, those of the Service row included.
    pub bits: u32,
}

impl<A: Address> RangeKey<A> {
    /// The clients that share `length` bits with `client`, of a row of
    /// `SERVICES`.
    pub fn new(service: u32, client: A, length: u8) -> Self {
        Self {
            range: SourceRange::new(service, client),
            bits: SourceRange::<A>::SERVICE_BITS + u32::from(length),
        }
    }

    /// Row of `SERVICES` it is about; `None` if it covers several, which no
    /// agent of ours writes.
    pub fn service(&self) -> Option<u32> {
        (self.bits >= SourceRange::<A>::SERVICE_BITS)
            .then_some(u32::from_be_bytes(self.range.service))
    }
}

impl<F: Family> Write<F> {
    /// The table that it changes, without the family's suffix.
    pub fn table(&self) -> Table {
        match self {
            Self::Filter { .. } => Table::Prefilter,
            Self::Backend { .. } | Self::BackendState { .. } => Table::Backends,
            Self::Slots { .. } => Table::Slots,
            Self::Service { .. } | Self::SlotRange { .. } | Self::SessionAffinity { .. } => {
                Table::Services
            }
            Self::SourceRange { .. } | Self::DeleteSourceRange { .. } => Table::SourceRanges,
            Self::Name { .. } | Self::DeleteName { .. } => Table::Names,
            Self::Frontend { .. } | Self::DeleteFrontend { .. } => Table::Frontends,
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
    pub source_ranges: u32,
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
    pub source_ranges: BTreeSet<RangeKey<F::Addr>>,
    /// Words of the filters. That of masquerade addresses is the programs' own
    /// and left out.
    pub filters: [Vec<u64>; prefilter::FILTERS],
}

impl<F: Family> Default for Tables<F> {
    fn default() -> Self {
        Self {
            frontends: BTreeMap::new(),
            services: Vec::new(),
            slots: Vec::new(),
            backends: Vec::new(),
            names: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
            filters: Default::default(),
        }
    }
}

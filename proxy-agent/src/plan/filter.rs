//! Upkeep of `PREFILTER`: which bits must be set, and when one may be cleared.
//!
//! A bit is needed by the frontends and backends in the tables, and by flows
//! that outlive theirs. Changes only set bits, before what they stand for is
//! written. The periodic comparison sets those that are missing, and clears
//! those that nothing needs, in this order:
//!
//! 1. [`Planner::excess`]: bits that are set and that nothing in the tables
//!    needs. They become *idle*; one that a change needs again no longer is.
//! 2. The flow table is read, and what a flow needs is taken out.
//! 3. [`Planner::clear_idle`]: what is left, and was idle for [`GRACE`]
//!    already when reading began, is cleared.
//!
//! A flow that is opened meanwhile loses no bit. Its program has found frontend
//! and backend in the tables. Either they still are there, then their bits
//! are not in excess. Or they went, but a program runs far shorter than
//! [`GRACE`] (E31): what went before the bit became idle and could still be
//! found then is in a flow record by the time the flow table is read; what went
//! later was needed in between, which ended the idle time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use proxy_common::{
    family::Family,
    frontend::FrontendKey,
    net::{Address, BePort, Protocol},
    prefilter,
};

use crate::plan::{Plan, Planner, alloc::GRACE, write::Write};

/// The ends of a flow, as the filters cover them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEnds<A> {
    pub frontend: A,
    pub frontend_port: BePort,
    pub backend: A,
    pub backend_port: BePort,
    pub protocol: Protocol,
}

/// A bit, with the filter it is in.
type Bit = (u32, u32);

/// All words of the filters. The one that the programs fill is left out.
type Words = [Vec<u64>; prefilter::FILTERS];

/// The filters as they are, and since when bits are idle.
#[derive(Clone, Debug)]
pub(super) struct Filters {
    words: Words,
    idle: BTreeMap<Bit, Instant>,
}

/// Bits that are set, and that nothing known so far needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess(BTreeSet<Bit>);

impl Excess {
    /// Returns whether no bit may be cleared.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out what a flow needs.
    pub fn keep<A: Address>(&mut self, flow: &FlowEnds<A>) {
        self.0.remove(&(
            prefilter::FRONTENDS,
            prefilter::frontend_bit(&flow.frontend),
        ));
        let bit = prefilter::node_port_bit(flow.frontend_port, flow.protocol);
        self.0.remove(&(prefilter::NODE_PORTS, bit));
        let bit = prefilter::backend_bit(&flow.backend, flow.backend_port, flow.protocol);
        self.0.remove(&(prefilter::BACKENDS, bit));
    }
}

impl Filters {
    /// Filters without any bit.
    pub(super) fn empty() -> Self {
        Self {
            words: no_words(),
            idle: BTreeMap::new(),
        }
    }

    /// Takes over words that were found in the table.
    pub(super) fn adopt(&mut self, found: &Words) {
        for (own, found) in self.words.iter_mut().zip(found) {
            own.fill(0);
            for (own, found) in own.iter_mut().zip(found) {
                *own = *found;
            }
        }
    }

    /// Sets or clears a bit. Returns its word if that changed.
    fn put(&mut self, (filter, bit): Bit, on: bool) -> Option<u64> {
        let word = &mut self.words[filter as usize][bit as usize / 64];
        let mask = 1 << (bit % 64);
        let value = if on { *word | mask } else { *word & !mask };
        (std::mem::replace(word, value) != value).then_some(value)
    }
}

impl<F: Family> Planner<F> {
    /// Sets the bit of a frontend: its address's, or its own if it is a
    /// NodePort.
    pub(super) fn set_frontend_bit(&mut self, key: &FrontendKey<F::Addr>, plan: &mut Plan<F>) {
        self.set_bit(frontend_bit(key), plan);
    }

    /// Sets the bit of a backend.
    pub(super) fn set_backend_bit(
        &mut self,
        addr: &F::Addr,
        port: BePort,
        protocol: Protocol,
        plan: &mut Plan<F>,
    ) {
        let bit = prefilter::backend_bit(addr, port, protocol);
        self.set_bit((prefilter::BACKENDS, bit), plan);
    }

    fn set_bit(&mut self, bit: Bit, plan: &mut Plan<F>) {
        self.filters.idle.remove(&bit);
        let changed = self.filters.put(bit, true);
        plan.writes
            .extend(changed.map(|value| filter_write(bit, value)));
    }

    /// Takes over filters that were found in the table.
    pub fn adopt_filters(&mut self, found: &Words) {
        self.filters.adopt(found);
    }

    /// Bits that what is in the tables needs.
    fn needed(&self) -> Words {
        let mut needed = no_words();
        let mut set = |filter: u32, bit: u32| {
            needed[filter as usize][bit as usize / 64] |= 1 << (bit % 64);
        };
        for key in self.frontends.keys() {
            let (filter, bit) = frontend_bit(key);
            set(filter, bit);
        }
        for (name, port) in &self.ports {
            for &(ip, port) in port.backends.keys() {
                let port = BePort::new(port);
                let bit = prefilter::backend_bit(&F::addr(ip), port, name.protocol);
                set(prefilter::BACKENDS, bit);
            }
        }
        needed
    }

    /// Plans to set bits that are missing. Only if somebody else has written
    /// the filters are there any.
    pub fn repair_filters(&mut self) -> Plan<F> {
        let mut plan = Plan::default();
        for bit in lacking(&self.needed(), &self.filters.words) {
            self.set_bit(bit, &mut plan);
        }
        plan
    }

    /// Bits that are set without need, unless a flow needs them.
    pub fn excess(&mut self, now: Instant) -> Excess {
        let excess: BTreeSet<_> = lacking(&self.filters.words, &self.needed())
            .into_iter()
            .collect();
        self.filters.idle.retain(|bit, _| excess.contains(bit));
        for bit in &excess {
            self.filters.idle.entry(*bit).or_insert(now);
        }
        Excess(excess)
    }

    /// Plans to clear what no flow was found to need, if it was idle for long
    /// enough. `read_at` is when reading the flows began.
    pub fn clear_idle(&mut self, excess: &Excess, read_at: Instant) -> Plan<F> {
        let mut cleared = BTreeMap::new();
        for bit in &excess.0 {
            let Some(since) = self.filters.idle.get(bit) else {
                continue;
            };
            if read_at.saturating_duration_since(*since) < GRACE {
                continue;
            }
            self.filters.idle.remove(bit);
            if let Some(value) = self.filters.put(*bit, false) {
                // The last value of a word has all its bits cleared.
                cleared.insert((bit.0, bit.1 / 64), filter_write(*bit, value));
            }
        }
        Plan {
            writes: cleared.into_values().collect(),
            problems: Vec::new(),
        }
    }
}

/// The filter and bit of a frontend.
fn frontend_bit<A: Address>(key: &FrontendKey<A>) -> Bit {
    if key.addr.is_zero() {
        let bit = prefilter::node_port_bit(key.port, key.protocol);
        (prefilter::NODE_PORTS, bit)
    } else {
        (prefilter::FRONTENDS, prefilter::frontend_bit(&key.addr))
    }
}

fn no_words() -> Words {
    std::array::from_fn(|filter| {
        if filter == prefilter::MASQUERADES as usize {
            Vec::new()
        } else {
            vec![0; prefilter::WORDS]
        }
    })
}

/// Bits that are set in the first and not in the second.
fn lacking(first: &Words, second: &Words) -> Vec<Bit> {
    let mut bits = Vec::new();
    for (filter, (first, second)) in (0..).zip(first.iter().zip(second)) {
        for (index, (first, second)) in (0..).zip(first.iter().zip(second)) {
            let mut rest = first & !second;
            while rest != 0 {
                bits.push((filter, index * 64 + rest.trailing_zeros()));
                rest &= rest - 1;
            }
        }
    }
    bits
}

fn filter_write<F: Family>((filter, bit): Bit, value: u64) -> Write<F> {
    Write::Filter {
        filter,
        word: bit / 64,
        value,
    }
}

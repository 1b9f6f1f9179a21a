//! The tables of a family, and the access of code that is generic over the family.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, SkStorage},
    macros::btf_map,
};
use proxy_common::{
    affinity::{Affinity, AffinityKey},
    backend::Backend,
    config::ConfigFamily,
    device::Device,
    explain::Explain,
    family::{V4, V6},
    flow::{Flow, FlowKey},
    foreign::{Foreign, Tuple},
    fragment::{FragmentKey, FragmentPorts},
    frontend::{Frontend, FrontendKey},
    local_addr::LocalAddr,
    masquerade::MasqueradeKey,
    net::{AddrV4, AddrV6},
    prefilter::{self, Filter},
    service::{Service, ServiceName, Slot},
    share::ClientFlows,
    socket::Peers,
    source_range::SourceRange,
};

use crate::{
    maps::{MMAPABLE, ON_DEMAND, SMALL, scratch::ScratchMemory},
    packet::rewrite::Rewrite,
};

/// `bpf_map_update_elem`: create or replace.
pub const BPF_ANY: u64 = 0;
/// `bpf_map_update_elem`: create only.
pub const BPF_NOEXIST: u64 = 1;

type Frontends<A> = HashMap<FrontendKey<A>, Frontend, SMALL, ON_DEMAND>;
type Services = Array<Service, SMALL, MMAPABLE>;
type Slots = Array<Slot, SMALL, MMAPABLE>;
type Backends<A> = Array<Backend<A>, SMALL, MMAPABLE>;
type Flows<A> = HashMap<FlowKey<A>, Flow<A>, SMALL>;
type Masquerades<A> = HashMap<MasqueradeKey<A>, FlowKey<A>, SMALL>;
type Fragments<A> = LruHashMap<FragmentKey<A>, FragmentPorts, SMALL>;
type Foreigners<A> = HashMap<Tuple<A>, Foreign, SMALL, ON_DEMAND>;
type Filters = Array<Filter, { prefilter::FILTERS }, MMAPABLE>;
type LocalAddrs<A> = LpmTrie<A, LocalAddr, SMALL>;
type SourceRanges<A> = LpmTrie<SourceRange<A>, u32, SMALL>;
type Affinities<A> = LruHashMap<AffinityKey<A>, Affinity, SMALL>;
type Clients<A> = HashMap<A, ClientFlows, SMALL, ON_DEMAND>;
type Names = HashMap<u32, ServiceName, SMALL, ON_DEMAND>;

#[btf_map]
static EXPLAIN: Array<Explain, 1, MMAPABLE> = Array::new();

/// The frontends that sockets connected or sent to. The kernel keeps each value with its socket.
#[btf_map]
pub static SOCKETS: SkStorage<Peers> = SkStorage::new();

/// Gives code that is generic over the family its maps.
pub trait Tables: Rewrite + ScratchMemory + ConfigFamily {
    /// Index of `SWEEPS`.
    const SWEEP: u32;
    fn frontends() -> &'static Frontends<Self::Addr>;
    fn services() -> &'static Services;
    fn slots() -> &'static Slots;
    fn backends() -> &'static Backends<Self::Addr>;
    fn flows() -> &'static Flows<Self::Addr>;
    fn masquerades() -> &'static Masquerades<Self::Addr>;
    fn fragments() -> &'static Fragments<Self::Addr>;
    fn foreign() -> &'static Foreigners<Self::Addr>;
    fn filters() -> &'static Filters;
    fn local_addrs() -> &'static LocalAddrs<Self::Addr>;
    fn source_ranges() -> &'static SourceRanges<Self::Addr>;
    fn affinities() -> &'static Affinities<Self::Addr>;
    fn clients() -> &'static Clients<Self::Addr>;
    /// The family's masquerade address of a device.
    fn masquerade_addr(device: &Device) -> Self::Addr;
}

/// Declares the maps of one family. Their names are what operators see in
/// bpftool, so they are spelled out.
macro_rules! family_tables {
    ($family:ident, $addr:ident, $sweep:literal, $masquerade:ident,
     $frontends:ident, $services:ident, $slots:ident, $backends:ident, $flows:ident,
     $masq:ident, $fragments:ident, $foreign:ident, $filters:ident, $names:ident, $local_addrs:ident,
     $source_ranges:ident, $affinities:ident, $clients:ident) => {
        #[btf_map]
        static $frontends: Frontends<$addr> = HashMap::new();
        #[btf_map]
        static $services: Services = Array::new();
        #[btf_map]
        static $slots: Slots = Array::new();
        #[btf_map]
        static $backends: Backends<$addr> = Array::new();
        #[btf_map]
        static $flows: Flows<$addr> = HashMap::new();
        #[btf_map]
        static $masq: Masquerades<$addr> = HashMap::new();
        #[btf_map]
        static $fragments: Fragments<$addr> = LruHashMap::new();
        #[btf_map]
        static $foreign: Foreigners<$addr> = HashMap::new();
        #[btf_map]
        static $filters: Filters = Array::new();
        #[btf_map]
        static $local_addrs: LocalAddrs<$addr> = LpmTrie::new();
        #[btf_map]
        static $source_ranges: SourceRanges<$addr> = LpmTrie::new();
        #[btf_map]
        static $affinities: Affinities<$addr> = LruHashMap::new();
        #[btf_map]
        static $clients: Clients<$addr> = HashMap::new();
        /// Read by people and by the agent, by no program.
        #[btf_map]
        static $names: Names = HashMap::new();

        impl Tables for $family {
            const SWEEP: u32 = $sweep;

            #[inline(always)]
            fn frontends() -> &'static Frontends<Self::Addr> {
                &$frontends
            }
            #[inline(always)]
            fn services() -> &'static Services {
                &$services
            }
            #[inline(always)]
            fn slots() -> &'static Slots {
                &$slots
            }
            #[inline(always)]
            fn backends() -> &'static Backends<Self::Addr> {
                &$backends
            }
            #[inline(always)]
            fn flows() -> &'static Flows<Self::Addr> {
                &$flows
            }
            #[inline(always)]
            fn masquerades() -> &'static Masquerades<Self::Addr> {
                &$masq
            }
            #[inline(always)]
            fn fragments() -> &'static Fragments<Self::Addr> {
                &$fragments
            }
            #[inline(always)]
            fn foreign() -> &'static Foreigners<Self::Addr> {
                &$foreign
            }
            #[inline(always)]
            fn filters() -> &'static Filters {
                &$filters
            }
            #[inline(always)]
            fn local_addrs() -> &'static LocalAddrs<Self::Addr> {
                &$local_addrs
            }
            #[inline(always)]
            fn source_ranges() -> &'static SourceRanges<Self::Addr> {
                &$source_ranges
            }
            #[inline(always)]
            fn affinities() -> &'static Affinities<Self::Addr> {
                &$affinities
            }
            #[inline(always)]
            fn clients() -> &'static Clients<Self::Addr> {
                &$clients
            }
            #[inline(always)]
            fn masquerade_addr(device: &Device) -> Self::Addr {
                device.$masquerade
            }
        }
    };
}

family_tables!(
    V4,
    AddrV4,
    0,
    masquerade_v4,
    FRONTENDS_V4,
    SERVICES_V4,
    SLOTS_V4,
    BACKENDS_V4,
    FLOWS_V4,
    MASQ_V4,
    FRAGMENTS_V4,
    FOREIGN_V4,
    PREFILTER_V4,
    NAMES_V4,
    LOCAL_ADDRS_V4,
    SOURCE_RANGES_V4,
    AFFINITY_V4,
    CLIENTS_V4
);
family_tables!(
    V6,
    AddrV6,
    1,
    masquerade_v6,
    FRONTENDS_V6,
    SERVICES_V6,
    SLOTS_V6,
    BACKENDS_V6,
    FLOWS_V6,
    MASQ_V6,
    FRAGMENTS_V6,
    FOREIGN_V6,
    PREFILTER_V6,
    NAMES_V6,
    LOCAL_ADDRS_V6,
    SOURCE_RANGES_V6,
    AFFINITY_V6,
    CLIENTS_V6
);

/// The question to the program `explain`, and its answer.
#[inline(always)]
pub fn explain() -> Option<*mut Explain> {
    EXPLAIN.get_ptr_mut(0)
}

//! The maps, and the access of code that is generic over the family.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, SkStorage},
    cty::c_void,
    helpers::generated::bpf_for_each_map_elem,
    macros::btf_map,
};
use proxy_common::{
    affinity::{Affinity, AffinityKey},
    backend::Backend,
    config::{Config, ConfigFamily},
    counter::Counter,
    device::Device,
    explain::Explain,
    family::{V4, V6},
    flow::{Flow, FlowKey},
    fragment::{FragmentKey, FragmentPorts},
    frontend::{Frontend, FrontendKey},
    local_addr::LocalAddr,
    masquerade::MasqueradeKey,
    net::{AddrV4, AddrV6, BePort, Protocol},
    prefilter::{self, Filter},
    service::{Service, ServiceName, Slot},
    share::{ClientFlows, ClientSizes, Share},
    socket::Peers,
    source_range::SourceRange,
    vlan::Vlan,
};

use crate::{
    packet::{
        barrier::masked,
        parse::Headers,
        skb::{Buffer, Skb},
    },
    reply::icmp::Quote,
    subprograms::Subprograms,
};

/// `bpf_map_update_elem`: create or replace.
pub const BPF_ANY: u64 = 0;
/// `bpf_map_update_elem`: create only.
pub const BPF_NOEXIST: u64 = 1;

/// Table sizes here are small; the agent sets the real ones when it loads.
const SMALL: usize = 1024;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

type Frontends<A> = HashMap<FrontendKey<A>, Frontend, SMALL, ON_DEMAND>;
type Services = Array<Service, SMALL, MMAPABLE>;
type Slots = Array<Slot, SMALL, MMAPABLE>;
type Backends<A> = Array<Backend<A>, SMALL, MMAPABLE>;
type Flows<A> = HashMap<FlowKey<A>, Flow<A>, SMALL>;
type Masquerades<A> = HashMap<MasqueradeKey<A>, FlowKey<A>, SMALL>;
type Fragments<A> = LruHashMap<FragmentKey<A>, FragmentPorts, SMALL>;
type Filters = Array<Filter, { prefilter::FILTERS }, MMAPABLE>;
type LocalAddrs<A> = LpmTrie<A, LocalAddr, SMALL>;
type SourceRanges<A> = LpmTrie<SourceRange<A>, u32, SMALL>;
type Affinities<A> = LruHashMap<AffinityKey<A>, Affinity, SMALL>;
type Clients<A> = HashMap<A, ClientFlows, SMALL, ON_DEMAND>;
type Names = HashMap<u32, ServiceName, SMALL, ON_DEMAND>;

#[btf_map]
static CONFIG: Array<Config, 1, MMAPABLE> = Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::ROOM }> = PerCpuArray::new();
#[btf_map]
static DEVICES: HashMap<u32, Device, SMALL, ON_DEMAND> = HashMap::new();
#[btf_map]
static VLANS: HashMap<Vlan, u32, SMALL, ON_DEMAND> = HashMap::new();
#[btf_map]
static REFUSALS: PerCpuArray<Refusals, 1> = PerCpuArray::new();
/// By client; not pinned.
#[btf_map]
static REFUSED_CLIENTS: PerCpuArray<RefusedClient, { REFUSED_CLIENTS_MASK as usize + 1 }> =
    PerCpuArray::new();
#[btf_map]
static EXPLAIN: Array<Explain, 1, MMAPABLE> = Array::new();
#[btf_map]
static SWEEPS: Array<Sweep, 2> = Array::new();
/// Reply tuples in use at the last sweep, by family.
#[btf_map]
static SWEPT_MASQ: Array<u32, 2> = Array::new();
/// Makes a loop of 64 rounds of the helper that visits the elements of a map. The
/// verifier follows one round of that, where it would follow all of a loop.
#[btf_map]
static ROUNDS: Array<u32, 64> = Array::new();
/// By family, what the last sweep leaves to the next one.
#[btf_map]
static IDLE: Array<Idle, 2> = Array::new();
/// By family; not pinned, as all that is known of clients.
#[btf_map]
static CLIENT_SIZES: Array<ClientSizes, 2> = Array::new();
/// By family, written by the agent.
#[btf_map]
static SHARES: Array<Share, 2> = Array::new();
/// The frontends that sockets connected or sent to. The kernel keeps each value with its socket.
#[btf_map]
pub static SOCKETS: SkStorage<Peers> = SkStorage::new();
/// Ids of the cgroups whose processes the socket programs leave alone.
#[btf_map]
static EXCEPTIONS: HashMap<u64, u32, SMALL, ON_DEMAND> = HashMap::new();

/// The slow path's programs, at the index [`Slow`].
#[btf_map]
static PROGRAMS: ProgramArray<16> = ProgramArray::new();

/// Index of `PROGRAMS`.
#[derive(Clone, Copy)]
pub enum Slow {
    IngressV4,
    IngressV6,
    EgressV4,
    EgressV6,
    HostV4,
    HostV6,
    UplinkV4,
    UplinkV6,
}

/// One family's programs of the slow path.
pub struct SlowPath {
    /// Packets that come in.
    pub ingress: Slow,
    /// Packets that leave.
    pub egress: Slow,
    /// Packets of this host's own processes that leave for a frontend.
    pub host: Slow,
    /// Translated replies that leave by their client's uplink.
    pub uplink: Slow,
}

/// Memory of the slow path: more than fits its stack. One for each CPU is
/// enough, because the hooks run with interrupts of their kind held off. On newer
/// real-time kernels they do not, and the agent does not start there.
#[repr(C)]
pub struct Scratch<A> {
    /// The packet.
    pub headers: Headers<A>,
    /// A flow's key, while it is looked for.
    pub key: FlowKey<A>,
    /// The frontend that the client connected to.
    pub frontend: Frontend,
    /// A flow that is being opened.
    pub flow: Flow<A>,
    /// A reply tuple that is being claimed or looked up.
    pub reply: MasqueradeKey<A>,
    /// A client's session affinity that is looked up or noted.
    pub affinity_key: AffinityKey<A>,
    pub affinity: Affinity,
    /// The packet that an ICMP error quotes.
    pub quote: Quote<A>,
    /// What an ICMP error of ours quotes.
    pub buffer: Buffer,
}

/// What the last sweep of a family found.
#[repr(C)]
pub struct Sweep {
    /// Flows in the table.
    pub flows: u32,
    /// Flows removed.
    pub expired: u32,
}

/// A sweep, and how long it found established flows idle.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Idle {
    /// The longest time.
    pub longest: u32,
    /// How many are of clients that have more than their share.
    pub over_share: u32,
    /// The longest time of these.
    pub longest_over_share: u32,
    /// When it was.
    pub swept: u32,
    /// How many sweeps in a row, up to this one, were under pressure.
    pub pressed: u32,
}

/// Refusals sent by one CPU in one millisecond.
#[repr(C)]
pub struct Refusals {
    pub millisecond: u64,
    pub sent: u64,
}

/// What one CPU was asked to refuse to the clients with one hash.
#[repr(C)]
pub struct RefusedClient {
    pub millisecond: u64,
    pub wanted: u64,
    /// Answers in this millisecond.
    pub limit: u64,
}

/// Bits of a client's hash that tell clients apart.
const REFUSED_CLIENTS_MASK: u32 = 0xff;

/// Gives code that is generic over the family its maps.
pub trait Tables: ConfigFamily + Subprograms {
    /// Index of `SWEEPS`.
    const SWEEP: u32;
    fn frontends() -> &'static Frontends<Self::Addr>;
    fn services() -> &'static Services;
    fn slots() -> &'static Slots;
    fn backends() -> &'static Backends<Self::Addr>;
    fn flows() -> &'static Flows<Self::Addr>;
    fn masquerades() -> &'static Masquerades<Self::Addr>;
    fn fragments() -> &'static Fragments<Self::Addr>;
    fn filters() -> &'static Filters;
    fn local_addrs() -> &'static LocalAddrs<Self::Addr>;
    fn source_ranges() -> &'static SourceRanges<Self::Addr>;
    fn affinities() -> &'static Affinities<Self::Addr>;
    fn clients() -> &'static Clients<Self::Addr>;
    /// This CPU's scratch memory.
    fn scratch() -> Option<&'static mut Scratch<Self::Addr>>;
    /// The family's slow path.
    const SLOW: SlowPath;
    /// The family's masquerade address of a device.
    fn masquerade_addr(device: &Device) -> Self::Addr;
}

/// Declares the maps of one family. Their names are what operators see in
/// bpftool, so they are spelled out.
macro_rules! family_tables {
    ($family:ident, $addr:ident, $sweep:literal, $masquerade:ident,
     $frontends:ident, $services:ident, $slots:ident, $backends:ident, $flows:ident,
     $masq:ident, $fragments:ident, $filters:ident, $names:ident, $local_addrs:ident,
     $source_ranges:ident, $affinities:ident, $clients:ident, $scratch:ident,
     $ingress:ident, $egress:ident, $host:ident, $uplink:ident) => {
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

        #[btf_map]
        static $scratch: PerCpuArray<Scratch<$addr>, 1> = PerCpuArray::new();

        impl Tables for $family {
            const SWEEP: u32 = $sweep;
            const SLOW: SlowPath = SlowPath {
                ingress: Slow::$ingress,
                egress: Slow::$egress,
                host: Slow::$host,
                uplink: Slow::$uplink,
            };

            #[inline(always)]
            fn scratch() -> Option<&'static mut Scratch<Self::Addr>> {
                let scratch = $scratch.get_ptr_mut(0)?;
                // SAFETY: only one program at a time runs on a CPU, and each
                // asks for its scratch memory once.
                Some(unsafe { &mut *scratch })
            }

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
    PREFILTER_V4,
    NAMES_V4,
    LOCAL_ADDRS_V4,
    SOURCE_RANGES_V4,
    AFFINITY_V4,
    CLIENTS_V4,
    SCRATCH_V4,
    IngressV4,
    EgressV4,
    HostV4,
    UplinkV4
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
    PREFILTER_V6,
    NAMES_V6,
    LOCAL_ADDRS_V6,
    SOURCE_RANGES_V6,
    AFFINITY_V6,
    CLIENTS_V6,
    SCRATCH_V6,
    IngressV6,
    EgressV6,
    HostV6,
    UplinkV6
);

/// Goes on in a program of the slow path. Returns only if it is not there.
#[inline(always)]
pub fn go_slow(skb: Skb, program: Slow) {
    // SAFETY: the context is the one this program was given.
    unsafe { PROGRAMS.tail_call(&skb, program as u32) };
}

/// The agent's settings.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// What is known of the device with this ifindex.
#[inline(always)]
pub fn device(ifindex: u32) -> Option<&'static Device> {
    // SAFETY: only the agent writes this map, field by field equal or new; a
    // stale read gives the device's former addresses.
    unsafe { DEVICES.get(ifindex) }
}

/// The uplink that takes the packets of a VLAN.
#[inline(always)]
pub fn uplink_of(vlan: &Vlan) -> Option<u32> {
    // SAFETY: copied at once; a stale read gives the former uplink.
    unsafe { VLANS.get(vlan) }.copied()
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU value; only this CPU writes it.
        unsafe { *value += 1 };
    }
}

/// The same for programs that run in process context, where others that count
/// may come in between.
#[inline(always)]
pub fn count_preemptible(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: one atomic addition to a valid, aligned value.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({0} + 0) += {1}",
                in(reg) value,
                in(reg) 1_u64,
                options(nostack)
            );
        }
    }
}

/// Whether the socket programs leave the processes of this cgroup alone.
#[inline(always)]
pub fn is_exception(cgroup: u64) -> bool {
    EXCEPTIONS.get_ptr(cgroup).is_some()
}

/// This CPU's record of refusals.
#[inline(always)]
pub fn refusals() -> Option<*mut Refusals> {
    REFUSALS.get_ptr_mut(0)
}

/// This CPU's record of refusals to clients with this hash.
#[inline(always)]
pub fn refusals_to(hash: u32) -> Option<*mut RefusedClient> {
    REFUSED_CLIENTS.get_ptr_mut(hash & REFUSED_CLIENTS_MASK)
}

/// Calls back at most 64 times, until `visit` returns 1. It must have the
/// signature that the helper calls.
#[inline(always)]
pub fn up_to_64_times<T>(visit: *mut c_void, state: &mut T) {
    // SAFETY: a map, a function as the caller promises, and a state that
    // outlives the call.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const ROUNDS).cast_mut().cast(),
            visit,
            core::ptr::from_mut(state).cast(),
            0,
        );
    }
}

/// The question to the program `explain`, and its answer.
#[inline(always)]
pub fn explain() -> Option<*mut Explain> {
    EXPLAIN.get_ptr_mut(0)
}

/// Where the last sweep of a family reports.
#[inline(always)]
pub fn sweep<F: Tables>() -> Option<*mut Sweep> {
    SWEEPS.get_ptr_mut(F::SWEEP)
}

/// Where the last sweep of a family reports how many reply tuples there are.
#[inline(always)]
pub fn swept_replies<F: Tables>() -> Option<*mut u32> {
    SWEPT_MASQ.get_ptr_mut(F::SWEEP)
}

/// What the last sweep of a family left.
#[inline(always)]
pub fn idle<F: Tables>() -> Option<*mut Idle> {
    IDLE.get_ptr_mut(F::SWEEP)
}

/// Where a sweep of a family tells how large its clients are.
#[inline(always)]
pub fn client_sizes<F: Tables>() -> Option<*mut ClientSizes> {
    CLIENT_SIZES.get_ptr_mut(F::SWEEP)
}

/// What each client of a family may have.
#[inline(always)]
pub fn share<F: Tables>() -> Option<*mut Share> {
    SHARES.get_ptr_mut(F::SWEEP)
}

/// Whether `addr` may be a frontend's.
#[inline(always)]
pub fn may_be_frontend<F: Tables>(addr: &F::Addr) -> bool {
    bit::<F>(prefilter::FRONTENDS, prefilter::frontend_bit(addr))
}

/// Whether this may be a backend.
#[inline(always)]
pub fn may_be_backend<F: Tables>(addr: &F::Addr, port: BePort, protocol: Protocol) -> bool {
    bit::<F>(
        prefilter::BACKENDS,
        prefilter::backend_bit(addr, port, protocol),
    )
}

/// Whether `addr` may be one that replies to masqueraded flows come to.
#[inline(always)]
pub fn may_be_masquerade<F: Tables>(addr: &F::Addr) -> bool {
    bit::<F>(prefilter::MASQUERADES, prefilter::frontend_bit(addr))
}

/// Whether this may be a NodePort: it is one of some Service.
#[inline(always)]
pub fn may_be_node_port<F: Tables>(port: BePort, protocol: Protocol) -> bool {
    bit::<F>(
        prefilter::NODE_PORTS,
        prefilter::node_port_bit(port, protocol),
    )
}

/// The same questions for the slow path, as functions of their own: they need
/// much of its stack.
pub mod slow {
    use super::{BePort, Protocol, Tables};

    #[inline(never)]
    pub fn may_be_frontend<F: Tables>(addr: &F::Addr) -> bool {
        super::may_be_frontend::<F>(addr)
    }

    #[inline(never)]
    pub fn may_be_backend<F: Tables>(addr: &F::Addr, port: BePort, protocol: Protocol) -> bool {
        super::may_be_backend::<F>(addr, port, protocol)
    }

    #[inline(never)]
    pub fn may_be_masquerade<F: Tables>(addr: &F::Addr) -> bool {
        super::may_be_masquerade::<F>(addr)
    }
}

/// Notes that replies to masqueraded flows come to `addr`.
///
/// Two CPUs that set bits of one word at the same moment may lose one; every
/// packet that is masqueraded sets its bit again if it is missing.
#[inline(never)]
pub fn note_masquerade<F: Tables>(addr: &F::Addr) {
    let bit = prefilter::frontend_bit(addr);
    let Some(filter) = F::filters().get_ptr_mut(prefilter::MASQUERADES) else {
        return;
    };
    let index = masked::<{ prefilter::WORDS as u32 - 1 }>(bit / 64);
    // SAFETY: the value lives as long as the program; the index is masked to
    // the array. Racing stores are described above.
    unsafe {
        let word = filter.cast::<u64>().add(index);
        let mask = 1_u64 << (bit % 64);
        if word.read_volatile() & mask == 0 {
            word.write_volatile(word.read_volatile() | mask);
        }
    }
}

#[inline(always)]
fn bit<F: Tables>(filter: u32, bit: u32) -> bool {
    let Some(filter) = F::filters().get_ptr(filter) else {
        return false;
    };
    let index = masked::<{ prefilter::WORDS as u32 - 1 }>(bit / 64);
    // SAFETY: the value lives as long as the program; the index is masked to
    // the array.
    let word = unsafe { filter.cast::<u64>().add(index).read_volatile() };
    word >> (bit % 64) & 1 != 0
}

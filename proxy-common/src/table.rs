//! The maps of the datapath, each declared once: name, scope, size, pin and meaning.
//!
//! The programs declare maps of these names (`proxy-ebpf`); the agent takes sizes and
//! pins from here, and a test compares both with the object.

use core::fmt;

/// Whether a map exists once or for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Twice: the name ends in `_V4` and `_V6`.
    Family,
    /// Once, for both families.
    Node,
}

/// The number of entries that a map gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// As many as the programs declare.
    Declared,
    /// This many.
    Count(u32),
    /// A Service port may have a cluster IP, a NodePort and another address, and
    /// the addresses have an entry of their own.
    Frontends,
    /// One for each Service port.
    ServicePorts,
    /// Two for each endpoint: a changed set stands beside the old one for a while.
    Slots,
    /// One for each endpoint of a Service port.
    Endpoints,
    /// One for each prefix that may use a load balancer's address.
    SourceRanges,
    /// One for each flow. Of reply tuples, too, if all flows are masqueraded; those of
    /// the host's processes may need two.
    Flows,
    /// One for four flows.
    Affinity,
    /// One for each network device.
    Devices,
    /// One for each prefix of the local routing table.
    LocalAddrs,
}

/// Defines the maps once.
macro_rules! tables {
    ($($(#[doc = $doc:literal])+ $name:ident => $map:literal, $scope:ident, $entries:expr, $pinned:literal;)+) => {
        /// A map of the datapath.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Table {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Table {
            /// All maps.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The map's name, without the family's suffix.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $map,)+ }
            }

            /// Returns whether it exists once or for each family.
            pub const fn scope(self) -> Scope {
                match self { $(Self::$name => Scope::$scope,)+ }
            }

            /// Returns how many entries it gets.
            pub const fn entries(self) -> Entries {
                match self { $(Self::$name => $entries,)+ }
            }

            /// Returns whether it is pinned, and so outlives the agent.
            pub const fn is_pinned(self) -> bool {
                match self { $(Self::$name => $pinned,)+ }
            }

            /// The meaning of its keys and values.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

tables! {
    /// frontends, backends, masquerade addresses, NodePorts → 2^20 bits.
    Prefilter => "PREFILTER", Family, Entries::Declared, true;
    /// address, port, protocol → service row, flags, kind, tag.
    Frontends => "FRONTENDS", Family, Entries::Frontends, true;
    /// row → slot range of the Cluster set, of the Local set, session affinity.
    Services => "SERVICES", Family, Entries::ServicePorts, true;
    /// slot → backend row.
    Slots => "SLOTS", Family, Entries::Slots, true;
    /// row → address, port, service row, generation, flags, epoch.
    Backends => "BACKENDS", Family, Entries::Endpoints, true;
    /// service row, client prefix → nothing: a match is enough.
    SourceRanges => "SOURCE_RANGES", Family, Entries::SourceRanges, true;
    /// client, service row, set → backend row, its generation and epoch, round, last use.
    Affinity => "AFFINITY", Family, Entries::Affinity, true;
    /// service row → namespace, name, port name, protocol.
    Names => "NAMES", Family, Entries::ServicePorts, true;
    /// client address, port, protocol, index → the flow.
    Flows => "FLOWS", Family, Entries::Flows, true;
    /// backend, masquerade address and port, protocol → the client's flow key.
    Masquerades => "MASQ", Family, Entries::Flows, true;
    /// addresses, id, protocol, hook → ports.
    Fragments => "FRAGMENTS", Family, Entries::Count(8192), true;
    /// ends of a packet that netfilter translates for kube-proxy → when that was noted.
    Foreign => "FOREIGN", Family, Entries::Count(131_072), true;
    /// prefix → whether it serves NodePorts, whether it is of the loopback.
    LocalAddrs => "LOCAL_ADDRS", Family, Entries::LocalAddrs, true;
    /// client → its flows, while the flow table is nearly full.
    Clients => "CLIENTS", Family, Entries::Flows, true;
    /// memory of the slow path.
    Scratch => "SCRATCH", Family, Entries::Declared, false;
    /// hash key, settings, pod prefixes, service ranges, time-outs.
    Config => "CONFIG", Node, Entries::Declared, true;
    /// event → count.
    Counters => "COUNTERS", Node, Entries::Declared, true;
    /// ifindex → bridge, masquerade addresses, MACs, flags, uplink.
    Devices => "DEVICES", Node, Entries::Devices, true;
    /// uplink, kind of tag, VLAN → uplink that takes it.
    Vlans => "VLANS", Node, Entries::Devices, true;
    /// the programs of the slow path.
    Programs => "PROGRAMS", Node, Entries::Declared, true;
    /// limit of refusals of one CPU.
    Refusals => "REFUSALS", Node, Entries::Declared, true;
    /// hash of a client → its part of the limit of refusals.
    RefusedClients => "REFUSED_CLIENTS", Node, Entries::Declared, false;
    /// family → what the last sweep found.
    Sweeps => "SWEEPS", Node, Entries::Declared, true;
    /// family → reply tuples in use at the last sweep.
    SweptMasquerades => "SWEPT_MASQ", Node, Entries::Declared, true;
    /// family → what the last sweep leaves to the next one.
    Idle => "IDLE", Node, Entries::Declared, false;
    /// family → clients by the number of their flows.
    ClientSizes => "CLIENT_SIZES", Node, Entries::Declared, true;
    /// family → flows that a client may have.
    Shares => "SHARES", Node, Entries::Declared, true;
    /// nothing: makes a loop of the helper that visits the elements of a map.
    Rounds => "ROUNDS", Node, Entries::Declared, false;
    /// question → answer of the program `explain`.
    Explain => "EXPLAIN", Node, Entries::Declared, false;
    /// socket → the frontends that it connected or sent to, and their backends.
    Sockets => "SOCKETS", Node, Entries::Declared, true;
    /// id of a cgroup that is left alone.
    Exceptions => "EXCEPTIONS", Node, Entries::Count(4096), true;
}

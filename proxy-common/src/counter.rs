//! `COUNTERS`: what the programs did and why, one per-CPU number for each.
//!
//! New counters go at the end and need no new [`LAYOUT_VERSION`]: the table has
//! [`Counter::ROOM`]. One that is not in the table that an earlier agent
//! pinned is not counted.
//!
//! [`LAYOUT_VERSION`]: crate::LAYOUT_VERSION

/// Defines the counters once: index, metric label and meaning.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident => $label:literal,)+) => {
        /// Index of `COUNTERS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Counter {
            /// All counters in the order of their index.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The counter's name in metrics and on the command line.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// Returns what it counts.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

impl Counter {
    /// Entries of `COUNTERS`.
    pub const ROOM: usize = 64;
}

const _: () = assert!(Counter::ALL.len() <= Counter::ROOM);

counters! {
    /// New flows recorded.
    FlowCreated => "flow_created",
    /// Flows the sweeper removed.
    FlowExpired => "flow_expired",
    /// Flows that left a backend which no longer serves.
    FlowReselected => "flow_reselected",
    /// New flows refused because the flow table is full.
    FlowTableFull => "flow_table_full",
    /// New flows refused because one client port talks to too many frontends.
    TooManyFrontends => "too_many_frontends",
    /// Packets refused because the Service has no usable endpoint.
    NoEndpoint => "no_endpoint",
    /// Packets dropped because the traffic policy leaves no endpoint on this node.
    NoLocalEndpoint => "no_local_endpoint",
    /// Packets refused because no Service has that port of the address.
    UnknownPort => "unknown_port",
    /// Refusals not sent because of the rate limit.
    RefusalLimited => "refusal_limited",
    /// New flows refused because no masquerade port towards their backend was found.
    MasqueradePortsExhausted => "masquerade_ports_exhausted",
    /// New flows dropped because their device has no address to masquerade to.
    MasqueradeNoAddress => "masquerade_no_address",
    /// Fragments dropped because their first fragment was not seen.
    FragmentUnknown => "fragment_unknown",
    /// Packets to a cluster IP dropped because they came by a device that had no program yet.
    Untranslated => "untranslated",
    /// ICMP redirects about translated flows dropped.
    RedirectDropped => "redirect_dropped",
    /// ICMP errors translated.
    IcmpErrorTranslated => "icmp_error_translated",
    /// Packets dropped because rewriting them failed.
    RewriteFailed => "rewrite_failed",
    /// Packets of host processes dropped because no route leads to the backend.
    NoRoute => "no_route",
    /// Flows given up because the client used the same port directly towards the backend.
    TupleClash => "tuple_clash",
    /// Packets dropped because loadBalancerSourceRanges does not have their sender.
    SourceRangeDenied => "source_range_denied",
    /// Packets dropped because no Service has the address, which is one for cluster IPs.
    Unallocated => "unallocated",
    /// Echo requests to Service addresses answered.
    EchoAnswered => "echo_answered",
    /// Connections that the socket programs led to a backend.
    SocketTranslated => "socket_translated",
    /// Fragments of SCTP packets dropped because the checksum of a fragmented one cannot follow a changed port.
    SctpFragment => "sctp_fragment",
    /// Calls that the socket LB refused because the Service has no usable endpoint or no such port.
    SocketRefused => "socket_refused",
    /// Unconnected sockets left to the packet path because they talk to too many frontends.
    SocketCrowded => "socket_crowded",
    /// Packets of host processes dropped because this node does not forward packets.
    ForwardingOff => "forwarding_off",
    /// Refusals and echo replies not sent because the packet's source is no single host.
    RefusalUnanswerable => "refusal_unanswerable",
    /// Packets of Services dropped because their transport header or its checksum is out of reach.
    Unreadable => "unreadable",
    /// Masquerade ports taken from connections that were over, or from flows that nobody answered.
    MasqueradeTakenOver => "masquerade_taken_over",
    /// Reply tuples removed because no flow has them any more.
    MasqueradeReaped => "masquerade_reaped",
    /// New flows refused because their client has its share of a flow table that is nearly full.
    ClientOverShare => "client_over_share",
    /// Replies to clients outside sent by the uplink that these come in by, where routing had chosen another device.
    ReplyRedirected => "reply_redirected",
    /// Packets dropped because the program of the slow path that they need is not in place.
    SlowPathMissing => "slow_path_missing",
    /// Packets to Services left to netfilter, because kube-proxy serves their flow.
    LeftToNetfilter => "left_to_netfilter",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_in_index_order() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}

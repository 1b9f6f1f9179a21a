//! `CONFIG`: the agent's word to the programs.

use crate::{
    family::{Family, V4, V6},
    net::{AddrV4, AddrV6, Address},
    pod,
};

/// The one value of `CONFIG`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Config {
    /// Key of the hash that picks backends. Made once and kept over restarts,
    /// so that a flow without a record finds its backend again.
    pub hash_key: [u64; 2],
    /// `SO_NETNS_COOKIE` of the agent: ifindexes in the pins are of that
    /// network namespace.
    pub netns_cookie: u64,
    /// [`crate::LAYOUT_VERSION`] of the agent that made the maps.
    pub layout: u32,
    /// [`Config::MASQUERADE_ALL`] and the other flags.
    pub flags: u32,
    pub pods_v4: Prefix<AddrV4>,
    pub pods_v6: Prefix<AddrV6>,
    /// The ranges of cluster IPs: what no Service has of them is dropped
    /// (S47). Unused entries are [`Prefix::NONE`] and come last.
    pub service_ranges_v4: [Prefix<AddrV4>; Self::SERVICE_RANGES],
    pub service_ranges_v6: [Prefix<AddrV6>; Self::SERVICE_RANGES],
    pub timeouts: Timeouts,
}

impl Config {
    /// The number of service ranges of each family that there may be.
    pub const SERVICE_RANGES: usize = 4;

    /// Masquerade every `ClusterIP` flow (S63).
    pub const MASQUERADE_ALL: u32 = 1;
    /// `pods_v4` tells local IPv4 clients from others (S68).
    pub const DETECT_PREFIX_V4: u32 = 2;
    /// `pods_v6` tells local IPv6 clients from others.
    pub const DETECT_PREFIX_V6: u32 = 4;
    /// The device a packet comes in by tells local clients from others.
    pub const DETECT_DEVICE: u32 = 8;
    /// `FLOWS_V4` or `MASQ_V4` is more than 80 % full.
    pub const PRESSED_V4: u32 = 16;
    /// `FLOWS_V6` or `MASQ_V6` is more than 80 % full.
    pub const PRESSED_V6: u32 = 32;
    /// The socket programs translate for processes in the agent's network
    /// namespace (E18).
    pub const SOCKETS_HOST: u32 = 64;
    /// The socket programs translate for processes in other network
    /// namespaces.
    pub const SOCKETS_PODS: u32 = 128;
    /// `EXCEPTIONS` has cgroups whose processes the socket programs leave
    /// alone.
    pub const SOCKETS_EXCEPTIONS: u32 = 256;
    /// Connected UDP sockets of the agent's network namespace cannot be ended
    /// when their backend goes away, so `connect` leaves them to the packet
    /// path, which chooses another backend.
    pub const UDP_BY_PACKETS_HOST: u32 = 512;
    /// The same of sockets in other network namespaces.
    pub const UDP_BY_PACKETS_PODS: u32 = 1024;
    /// A bridge has the MAC address of one of its ports: frames for the bridge
    /// that come in there are addressed to the port itself (E2).
    pub const PORT_HAS_BRIDGE_MAC: u32 = 2048;
    /// New flows are left to netfilter, where kube-proxy has its rules. With
    /// [`Config::FOREIGN`] they are entered there.
    pub const LEAVE_NEW: u32 = 4096;
    /// Flows of kube-proxy are under way: those in `FOREIGN` are left to netfilter, and so is
    /// what goes on with a connection that has no flow here.
    pub const FOREIGN: u32 = 8192;
    /// The tables are made of the last known state: the API server has not answered
    /// since the node started. For those who read the tables; programs do not care.
    pub const STALE: u32 = 16384;
}

/// A CIDR: `addr & mask`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix<A> {
    pub addr: A,
    pub mask: A,
}

impl<A: Address> Prefix<A> {
    /// Contains no host's address.
    pub const NONE: Self = Self {
        addr: A::ONES,
        mask: A::ONES,
    };

    /// Returns whether `addr` lies in the prefix.
    #[inline(always)]
    pub fn contains(&self, addr: &A) -> bool {
        let mut difference = 0;
        let mut index = 0;
        while index < A::WORDS {
            difference |= (addr.word(index) ^ self.addr.word(index)) & self.mask.word(index);
            index += 1;
        }
        difference == 0
    }
}

impl<A: Address> Default for Prefix<A> {
    fn default() -> Self {
        Self::NONE
    }
}

/// Idle times after which the sweeper removes a flow, in flow ticks.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// TCP, both sides beyond the handshake.
    pub tcp_established: u32,
    /// TCP, handshake not finished.
    pub tcp_opening: u32,
    /// TCP, both FINs or a RST seen.
    pub tcp_closing: u32,
    /// UDP and others, both directions seen.
    pub other_replied: u32,
    /// UDP and others, no reply yet.
    pub other_unreplied: u32,
    /// Any flow that is opening, closing or unreplied, while the table is
    /// more than 80 % full.
    pub pressed: u32,
}

/// A family's part of [`Config`].
pub trait ConfigFamily: Family {
    /// The pods' prefix, if one tells local clients from others.
    fn pods(config: &Config) -> Option<&Prefix<Self::Addr>>;

    /// The ranges of cluster IPs.
    fn service_ranges(config: &Config) -> &[Prefix<Self::Addr>; Config::SERVICE_RANGES];

    /// The flag of a family whose tables are nearly full.
    const PRESSED: u32;

    /// The client whose flow one of `addr` is when shares are counted: the address's own, but of
    /// IPv6 its /64's, because a host may have as many addresses of that as it likes.
    /// Pods have one each, and all of a node may be in one /64.
    fn client(config: &Config, addr: &Self::Addr) -> Self::Addr;
}

impl ConfigFamily for V4 {
    #[inline(always)]
    fn pods(config: &Config) -> Option<&Prefix<AddrV4>> {
        (config.flags & Config::DETECT_PREFIX_V4 != 0).then_some(&config.pods_v4)
    }

    #[inline(always)]
    fn service_ranges(config: &Config) -> &[Prefix<AddrV4>; Config::SERVICE_RANGES] {
        &config.service_ranges_v4
    }

    const PRESSED: u32 = Config::PRESSED_V4;

    #[inline(always)]
    fn client(_config: &Config, addr: &AddrV4) -> AddrV4 {
        *addr
    }
}

impl ConfigFamily for V6 {
    #[inline(always)]
    fn pods(config: &Config) -> Option<&Prefix<AddrV6>> {
        (config.flags & Config::DETECT_PREFIX_V6 != 0).then_some(&config.pods_v6)
    }

    #[inline(always)]
    fn service_ranges(config: &Config) -> &[Prefix<AddrV6>; Config::SERVICE_RANGES] {
        &config.service_ranges_v6
    }

    const PRESSED: u32 = Config::PRESSED_V6;

    #[inline(always)]
    fn client(config: &Config, addr: &AddrV6) -> AddrV6 {
        let is_pod = Self::pods(config).is_some_and(|pods| pods.contains(addr));
        let mut client = *addr;
        if !is_pod {
            let mut index = 8;
            while index < 16 {
                client.octets[index] = 0;
                index += 1;
            }
        }
        client
    }
}

const _: () = assert!(size_of::<Config>() == 256 && size_of::<Timeouts>() == 24);
pod!(Config);

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn addr(text: &str) -> AddrV6 {
        text.parse::<Ipv6Addr>().expect("an address").into()
    }

    #[test]
    fn no_prefix_contains_nothing() {
        for text in ["::", "fd00::1", "ff02::1"] {
            assert!(!Prefix::NONE.contains(&addr(text)));
        }
    }

    #[test]
    fn a_client_is_an_address_of_ipv4_a_pod_or_a_prefix() {
        let config = Config {
            flags: Config::DETECT_PREFIX_V6,
            pods_v6: Prefix {
                addr: addr("fd00:10:244::"),
                mask: addr("ffff:ffff:ffff::"),
            },
            ..Config::default()
        };
        for (of, client) in [
            ("fd00:10:244:1::7", "fd00:10:244:1::7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("fe80::1", "fe80::"),
        ] {
            assert_eq!(V6::client(&config, &addr(of)), addr(client), "{of}");
        }
        let v4 = AddrV4 {
            octets: [192, 0, 2, 7],
        };
        assert_eq!(V4::client(&config, &v4), v4);
        // Nothing tells which are pods.
        let nothing = Config { flags: 0, ..config };
        let client = V6::client(&nothing, &addr("fd00:10:244:1::7"));
        assert_eq!(client, addr("fd00:10:244:1::"));
    }

    #[test]
    fn prefix_ignores_host_bits_only() {
        let prefix = Prefix {
            addr: addr("fd00:10:1::"),
            mask: addr("ffff:ffff:ffff::"),
        };
        assert!(prefix.contains(&addr("fd00:10:1:ffff::1")));
        assert!(!prefix.contains(&addr("fd00:10:2::1")));
    }
}

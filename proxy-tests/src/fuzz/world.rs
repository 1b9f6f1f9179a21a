//! The Services that all sequences meet, and the addresses that play a part.

use std::net::{IpAddr, SocketAddr};

use proxy_common::{
    config::{Config, Prefix},
    local_addr::LocalAddr,
    net::Protocol,
};

use crate::{
    Family,
    packet::{Cast, Datapath, Frontend, MAC_PEER, ServicePort},
};

pub(super) const NODE_PORT: u16 = 30_080;
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// The endpoints of the Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoints {
    All,
    /// Those that share their Services with others.
    Fewer,
    /// Others than before.
    Others,
    None,
}

impl Endpoints {
    /// One for each number.
    pub(super) fn numbered(number: u8) -> Self {
        [Self::All, Self::Fewer, Self::Others, Self::None][usize::from(number % 4)]
    }

    fn of(self, cast: Cast) -> Vec<SocketAddr> {
        match self {
            Self::All => cast.endpoints(2),
            Self::Fewer => vec![cast.endpoint(2)],
            Self::Others => vec![cast.endpoint(3)],
            Self::None => Vec::new(),
        }
    }
}

/// Sets settings, and all Services of both families.
pub(super) fn set_up(datapath: &mut Datapath) {
    datapath.configure(|config: &mut Config| {
        config.service_ranges_v4[0] = Prefix {
            addr: std::net::Ipv4Addr::new(10, 96, 0, 0).into(),
            mask: std::net::Ipv4Addr::new(255, 255, 0, 0).into(),
        };
        config.service_ranges_v6[0] = Prefix {
            addr: std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0).into(),
            mask: std::net::Ipv6Addr::new(0xffff, 0xffff, 0xffff, 0, 0, 0, 0, 0).into(),
        };
    });
    // What comes from the peer could as well come from a router on this device.
    datapath.device(|device| device.mac = MAC_PEER);
    let casts = Family::BOTH.map(Cast::of);
    for cast in casts {
        datapath.local_addr(cast.node(), LocalAddr::NODE_PORTS);
    }
    serve(datapath, Endpoints::All);
}

/// Gives the Services of both families these endpoints.
pub(super) fn serve(datapath: &mut Datapath, endpoints: Endpoints) {
    let casts = Family::BOTH.map(Cast::of).into_iter();
    let ports: Vec<_> = casts.flat_map(|cast| services(cast, endpoints)).collect();
    datapath.serve_all(&ports);
}

fn services(cast: Cast, endpoints: Endpoints) -> Vec<ServicePort> {
    let (two, last) = (endpoints.of(cast), cast.endpoint(3));
    let same_port = SocketAddr::new(last.ip(), 53);
    let clients = format!("{}/32", cast.outsider().ip());
    let clients = clients.replace("::1/32", "::1/128");
    let of = |protocol| {
        [
            ServicePort::new(protocol, cast.vip(), &two)
                .with(Frontend::node_port(NODE_PORT))
                .with(Frontend::external_ip(cast.vip_with(11, 80)))
                .with(Frontend::load_balancer(cast.vip_with(12, 80)).restricted())
                .for_clients(&clients),
            ServicePort::new(protocol, cast.vip_with(13, 80), &two).with_session_affinity(100),
            ServicePort::new(protocol, cast.vip_with(14, 53), &[same_port]),
            ServicePort::new(protocol, cast.vip_with(15, 80), &[]),
            ServicePort {
                local: true,
                ..ServicePort::new(protocol, cast.vip_with(16, 80), &[last])
            },
            ServicePort::new(protocol, cast.vip_with(17, 80), &cast.endpoints(1)),
        ]
    };
    PROTOCOLS.into_iter().flat_map(of).collect()
}

/// The frontends where somebody answers.
pub(super) fn frontends(cast: Cast) -> Vec<SocketAddr> {
    vec![
        cast.vip(),
        cast.vip_with(11, 80),
        cast.vip_with(12, 80),
        cast.vip_with(13, 80),
        cast.vip_with(14, 53),
        cast.vip_with(17, 80),
        SocketAddr::new(cast.node(), NODE_PORT),
    ]
}

/// Frontends without endpoints or with restricted clients, and ports that no Service has.
pub(super) fn refusing(cast: Cast) -> Vec<SocketAddr> {
    vec![
        cast.vip_with(10, 81),
        cast.vip_with(10, 0),
        cast.vip_with(11, 0),
        cast.vip_with(15, 80),
        cast.vip_with(16, 80),
        cast.vip_with(99, 80),
        SocketAddr::new(cast.node(), 22),
    ]
}

/// Single hosts that may be clients.
pub(super) fn clients(cast: Cast) -> Vec<SocketAddr> {
    vec![
        cast.pod(),
        cast.pod_with(1, 0xffff),
        cast.pod_with(2, 1),
        cast.outsider(),
        cast.outsider_with(2, 40_000),
        cast.outsider_with(2, 123),
        SocketAddr::new(cast.endpoint(1).ip(), 40_000),
        SocketAddr::new(cast.endpoint(2).ip(), 40_000),
        cast.stranger(),
    ]
}

/// Backends that answer.
pub(super) fn backends(cast: Cast) -> Vec<SocketAddr> {
    let mut backends = cast.endpoints(3);
    backends.push(SocketAddr::new(cast.endpoint(3).ip(), 53));
    backends
}

/// Sources that no honest host has, and those that stand for many hosts.
pub(super) fn special(cast: Cast) -> Vec<IpAddr> {
    let own = [cast.vip().ip(), cast.node(), cast.router()];
    let others: &[&str] = match cast.family {
        Family::V4 => &[
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "169.254.1.1",
            "10.244.255.255",
        ],
        Family::V6 => &[
            "::",
            "::1",
            "ff02::1",
            "ff0e::1",
            "fe80::1",
            "::ffff:10.244.1.1",
            "fd00:10:244:1::",
        ],
    };
    let others = others.iter().map(|ip| ip.parse().expect("an address"));
    own.into_iter().chain(others).collect()
}

/// Returns whether a packet from or to this address may be ours: it is one of a frontend
/// , of an endpoint or of the node, or lies in a range for cluster IPs.
pub(super) fn may_be_ours(ip: IpAddr) -> bool {
    let cast = Cast::of(Family::of(ip));
    let same_net = |other: IpAddr| match (ip, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => one.octets()[..2] == other.octets()[..2],
        (IpAddr::V6(one), IpAddr::V6(other)) => one.segments()[..3] == other.segments()[..3],
        _ => false,
    };
    same_net(cast.vip().ip())
        || ip == cast.node()
        || (1..=3).any(|index| cast.endpoint(index).ip() == ip)
}

/// Returns whether an answer to this source would reach one host (RFC 1122 section 3.2.2,
/// RFC 4443 section 2.4).
pub(super) fn is_single_host(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !matches!(ip.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(ip) => {
            !ip.is_multicast()
                && !ip.is_unspecified()
                && !ip.is_loopback()
                && ip.to_ipv4_mapped().is_none()
        }
    }
}

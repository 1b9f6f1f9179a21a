//! Connections that netfilter tracks (`ctnetlink`): lists them, and ends single ones.

use std::{io, net::IpAddr};

use super::{Socket, array, attribute, put, put_nested};

const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;

/// Attributes of a connection.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const PROTOCOL_INFO: u16 = 4;
/// Attributes of one direction.
const IP: u16 = 1;
const PROTOCOL: u16 = 2;
/// Attributes of addresses.
const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;
/// Attributes of ports.
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// Attributes of a connection's state.
const TCP: u16 = 1;
const SCTP: u16 = 3;
const STATE: u16 = 1;

/// `TCP_CONNTRACK_TIME_WAIT` and `TCP_CONNTRACK_CLOSE`.
const TCP_OVER: [u8; 2] = [7, 8];
/// `SCTP_CONNTRACK_CLOSED`.
const SCTP_OVER: u8 = 1;

/// A packet's ends, in one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub protocol: u8,
    /// What the client sends.
    pub original: Ends,
    /// What is expected from the other end: who really answers, and to whom.
    pub reply: Ends,
    /// Both ends have said that it is over, or one has reset it.
    pub is_over: bool,
}

impl Connection {
    /// Returns whether netfilter changes an address or a port.
    pub fn is_translated(&self) -> bool {
        let answered = Ends {
            source: self.reply.destination,
            destination: self.reply.source,
            source_port: self.reply.destination_port,
            destination_port: self.reply.source_port,
        };
        answered != self.original
    }
}

/// Shows `take` all connections of a family (`AF_INET` or `AF_INET6`) that have ports.
pub fn list(family: libc::c_int, mut take: impl FnMut(Connection)) -> io::Result<()> {
    let family = u8::try_from(family).map_err(io::Error::other)?;
    Socket::open()?.list(GET, family, |_, attributes| {
        if let Some(connection) = parse(attributes) {
            take(connection);
        }
    })
}

/// Makes netfilter forget a connection, by what its client sends. Succeeds if there is none.
pub fn forget(protocol: u8, original: &Ends) -> io::Result<()> {
    let family = if original.source.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let family = u8::try_from(family).map_err(io::Error::other)?;
    match Socket::open()?.order(DELETE, family, &name(protocol, original)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// The attribute that names a connection.
fn name(protocol: u8, ends: &Ends) -> Vec<u8> {
    let mut message = Vec::new();
    put_nested(&mut message, ORIGINAL, |tuple| {
        put_nested(tuple, IP, |ip| {
            let (source, destination) = match ends.source {
                IpAddr::V4(_) => (V4_SOURCE, V4_DESTINATION),
                IpAddr::V6(_) => (V6_SOURCE, V6_DESTINATION),
            };
            put_address(ip, source, ends.source);
            put_address(ip, destination, ends.destination);
        });
        put_nested(tuple, PROTOCOL, |ports| {
            put(ports, NUMBER, &[protocol]);
            put(ports, SOURCE_PORT, &ends.source_port.to_be_bytes());
            put(
                ports,
                DESTINATION_PORT,
                &ends.destination_port.to_be_bytes(),
            );
        });
    });
    message
}

fn put_address(message: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put(message, kind, &address.octets()),
        IpAddr::V6(address) => put(message, kind, &address.octets()),
    }
}

fn parse(attributes: &[u8]) -> Option<Connection> {
    let (protocol, original) = direction(attribute(attributes, ORIGINAL)?)?;
    let (_, reply) = direction(attribute(attributes, REPLY)?)?;
    Some(Connection {
        protocol,
        original,
        reply,
        is_over: attribute(attributes, PROTOCOL_INFO).is_some_and(is_over),
    })
}

fn direction(tuple: &[u8]) -> Option<(u8, Ends)> {
    let (ip, protocol) = (attribute(tuple, IP)?, attribute(tuple, PROTOCOL)?);
    let port = |kind| Some(u16::from_be_bytes(array(attribute(protocol, kind)?, 0)?));
    let ends = Ends {
        source: address(ip, V4_SOURCE, V6_SOURCE)?,
        destination: address(ip, V4_DESTINATION, V6_DESTINATION)?,
        source_port: port(SOURCE_PORT)?,
        destination_port: port(DESTINATION_PORT)?,
    };
    let [number] = array(attribute(protocol, NUMBER)?, 0)?;
    Some((number, ends))
}

fn address(ip: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    if let Some(octets) = attribute(ip, v4) {
        return Some(IpAddr::from(array::<4>(octets, 0)?));
    }
    Some(IpAddr::from(array::<16>(attribute(ip, v6)?, 0)?))
}

fn is_over(info: &[u8]) -> bool {
    let state = |protocol| {
        let state = attribute(attribute(info, protocol)?, STATE)?;
        state.first().copied()
    };
    state(TCP).is_some_and(|state| TCP_OVER.contains(&state)) || state(SCTP) == Some(SCTP_OVER)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    /// As Linux 6.18 sends it: a TCP connection from 10.244.1.2:40000 to 10.96.0.10:80,
    /// which kube-proxy has led to 10.244.2.3:8080, and masqueraded by 192.168.7.1:1234.
    const GOLDEN: [u8; 152] = [
        52, 0, 1, 128, 20, 0, 1, 128, 8, 0, 1, 0, 10, 244, 1, 2, 8, 0, 2, 0, 10, 96, 0, 10, 28, 0,
        2, 128, 5, 0, 1, 0, 6, 0, 0, 0, 6, 0, 2, 0, 0x9c, 0x40, 0, 0, 6, 0, 3, 0, 0, 80, 0, 0, 52,
        0, 2, 128, 20, 0, 1, 128, 8, 0, 1, 0, 10, 244, 2, 3, 8, 0, 2, 0, 192, 168, 7, 1, 28, 0, 2,
        128, 5, 0, 1, 0, 6, 0, 0, 0, 6, 0, 2, 0, 0x1f, 0x90, 0, 0, 6, 0, 3, 0, 0x04, 0xd2, 0, 0, 8,
        0, 3, 0, 0, 0, 1, 0xbe, 8, 0, 7, 0, 0, 6, 0x97, 0x7f, 32, 0, 4, 128, 28, 0, 1, 128, 5, 0,
        1, 0, 3, 0, 0, 0, 5, 0, 2, 0, 7, 0, 0, 0, 5, 0, 3, 0, 7, 0, 0, 0,
    ];

    fn golden() -> Connection {
        let ip = |text: &str| text.parse().expect("an address");
        Connection {
            protocol: 6,
            original: Ends {
                source: ip("10.244.1.2"),
                destination: ip("10.96.0.10"),
                source_port: 40_000,
                destination_port: 80,
            },
            reply: Ends {
                source: ip("10.244.2.3"),
                destination: ip("192.168.7.1"),
                source_port: 8080,
                destination_port: 1234,
            },
            is_over: false,
        }
    }

    #[test]
    fn connections_are_read_as_the_kernel_sends_them() {
        assert_eq!(parse(&GOLDEN), Some(golden()));
    }

    #[test]
    fn a_connection_is_over_when_both_ends_say_so() {
        let mut message = GOLDEN;
        for (state, over) in [(1, false), (3, false), (6, false), (7, true), (8, true)] {
            message[132] = state;
            let connection = parse(&message).expect("a connection");
            assert_eq!(connection.is_over, over, "{state}");
        }
    }

    #[test]
    fn a_connection_is_named_by_what_its_client_sends() {
        assert_eq!(name(6, &golden().original), GOLDEN[..52]);
        let ends = Ends {
            source: Ipv6Addr::LOCALHOST.into(),
            destination: Ipv6Addr::UNSPECIFIED.into(),
            source_port: 1,
            destination_port: 2,
        };
        let named = name(17, &ends);
        let read = direction(attribute(&named, ORIGINAL).expect("a direction"));
        assert_eq!(read, Some((17, ends)));
    }

    /// Of ICMP there are no ports.
    #[test]
    fn what_is_cut_off_or_without_ports_is_left_out() {
        for length in 0..104 {
            assert_eq!(parse(&GOLDEN[..length]), None, "{length}");
        }
        let mut without = GOLDEN;
        without[38] = 5;
        assert_eq!(parse(&without), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn changed_bytes_are_read(at in 0..GOLDEN.len(), byte in any::<u8>()) {
            let mut bytes = GOLDEN;
            bytes[at] = byte;
            let _ = parse(&bytes);
        }
    }
}

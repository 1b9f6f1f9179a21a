//! The first packet of a flow, as a frame that the programs can read.

use std::net::IpAddr;

use super::flow::{Flow, Transport};

/// The frame. MAC addresses and checksums are zero: nobody looks at them.
pub fn first(flow: &Flow) -> Vec<u8> {
    let transport = transport(flow);
    let (ethertype, header) = match (flow.from.ip, flow.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (
            [0x08, 0x00],
            ip_v4(flow.transport, transport.len(), from.octets(), to.octets()),
        ),
        (from, to) => (
            [0x86, 0xdd],
            ip_v6(flow.transport, transport.len(), octets(from), octets(to)),
        ),
    };
    [&[0; 12][..], &ethertype, &header, &transport].concat()
}

/// Both addresses of a flow are of one family, so IPv4 ones do not get here.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn ip_v4(transport: Transport, payload: usize, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(length(20 + payload));
    // Identification, "do not fragment", hop limit.
    header.extend([0, 0, 0x40, 0, 64, transport.number().0, 0, 0]);
    header.extend(from);
    header.extend(to);
    header
}

fn ip_v6(transport: Transport, payload: usize, from: [u8; 16], to: [u8; 16]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(length(payload));
    header.extend([transport.number().0, 64]);
    header.extend(from);
    header.extend(to);
    header
}

/// A SYN, an empty datagram, or an INIT.
fn transport(flow: &Flow) -> Vec<u8> {
    let source = flow.from.port.unwrap_or(0).to_be_bytes();
    let mut bytes = [source, flow.to.port().to_be_bytes()].concat();
    match flow.transport {
        Transport::Tcp => {
            bytes.extend([0; 8]);
            bytes.extend([0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        }
        Transport::Udp => bytes.extend([0, 8, 0, 0]),
        Transport::Sctp => {
            // Verification tag and checksum, then the chunk.
            bytes.extend([0; 8]);
            bytes.extend([1, 0, 0, 20]);
            bytes.extend([0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        }
    }
    bytes
}

/// A length as it stands in a header. Ours are short.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn frame(from: &str, to: &str, transport: Transport) -> Vec<u8> {
        let from = from.parse().expect("a client");
        let to = to.parse().expect("a destination");
        first(&Flow::new(from, to, transport, None).expect("one family"))
    }

    #[rstest]
    #[case(Transport::Tcp, 6, 20)]
    #[case(Transport::Udp, 17, 8)]
    #[case(Transport::Sctp, 132, 32)]
    fn headers_say_how_long_they_are(
        #[case] transport: Transport,
        #[case] number: u8,
        #[case] length: u8,
    ) {
        let v4 = frame("10.0.0.1:258", "10.96.0.1:80", transport);
        assert_eq!(v4.len(), 14 + 20 + usize::from(length));
        assert_eq!(v4[12..15], [0x08, 0x00, 0x45]);
        assert_eq!(v4[16..18], [0, 20 + length]);
        assert_eq!(v4[23], number);
        assert_eq!(v4[26..38], [10, 0, 0, 1, 10, 96, 0, 1, 1, 2, 0, 80]);

        let v6 = frame("fd00::1", "[fd00::2]:80", transport);
        assert_eq!(v6.len(), 14 + 40 + usize::from(length));
        assert_eq!(v6[12..15], [0x86, 0xdd, 0x60]);
        assert_eq!(v6[18..21], [0, length, number]);
        assert_eq!((v6[37], v6[53]), (1, 2));
        assert_eq!(v6[54..58], [0, 0, 0, 80]);
    }
}

//! Checks that a packet is what a correct sender would have sent, by code
//! that neither the builder nor the programs share.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Slice, Icmpv6Slice, IpNumber, Ipv4Slice, Ipv6Slice, NetSlice, SlicedPacket, TcpSlice,
    TransportSlice, UdpSlice,
};

/// Says what is wrong with a frame: nothing, or the first bad checksum or
/// length. Quoted packets of ICMP errors are not looked at.
pub fn frame(bytes: &[u8]) -> Result<(), String> {
    sliced(&SlicedPacket::from_ethernet(bytes).map_err(|error| error.to_string())?)
}

/// The same for a packet without Ethernet header.
pub fn packet(bytes: &[u8]) -> Result<(), String> {
    sliced(&SlicedPacket::from_ip(bytes).map_err(|error| error.to_string())?)
}

fn sliced(packet: &SlicedPacket<'_>) -> Result<(), String> {
    let (fragmented, addresses) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => (ip.is_payload_fragmented(), v4(ip)?),
        Some(NetSlice::Ipv6(ip)) => (ip.is_payload_fragmented(), v6(ip)),
        _ => return Err("not an IP packet".to_owned()),
    };
    if fragmented {
        return Ok(());
    }
    match &packet.transport {
        None => sctp(packet),
        Some(TransportSlice::Tcp(tcp)) => check_tcp(tcp, addresses),
        Some(TransportSlice::Udp(udp)) => check_udp(udp, addresses),
        Some(TransportSlice::Icmpv4(icmp)) => icmp_v4(icmp),
        Some(TransportSlice::Icmpv6(icmp)) => icmp_v6(icmp, addresses),
        _ => Ok(()),
    }
}

/// Source and destination.
type Addresses = (IpAddr, IpAddr);

fn v4(ip: &Ipv4Slice<'_>) -> Result<Addresses, String> {
    let header = ip.header();
    let right = header.to_header().calc_header_checksum();
    same("IPv4 header checksum", header.header_checksum(), right)?;
    Ok((
        header.source_addr().into(),
        header.destination_addr().into(),
    ))
}

fn v6(ip: &Ipv6Slice<'_>) -> Addresses {
    let header = ip.header();
    (
        header.source_addr().into(),
        header.destination_addr().into(),
    )
}

fn check_tcp(tcp: &TcpSlice<'_>, addresses: Addresses) -> Result<(), String> {
    let right = match addresses {
        (IpAddr::V4(src), IpAddr::V4(dst)) => tcp.calc_checksum_ipv4(src.octets(), dst.octets()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => tcp.calc_checksum_ipv6(src.octets(), dst.octets()),
        _ => return Err("two families".to_owned()),
    }
    .map_err(|error| error.to_string())?;
    same("TCP checksum", tcp.checksum(), right)
}

fn check_udp(udp: &UdpSlice<'_>, addresses: Addresses) -> Result<(), String> {
    if udp.checksum() == 0 {
        return Ok(());
    }
    let (header, payload) = (udp.to_header(), udp.payload());
    let right = match addresses {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
        }
        _ => return Err("two families".to_owned()),
    }
    .map_err(|error| error.to_string())?;
    same("UDP checksum", udp.checksum(), right)
}

/// CRC-32C of an SCTP packet, unless it is left to the network card. Highest bit
/// first, unlike the builder.
fn sctp(packet: &SlicedPacket<'_>) -> Result<(), String> {
    const POLYNOMIAL: u32 = 0x1edc_6f41;
    let payload = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => ip.payload(),
        Some(NetSlice::Ipv6(ip)) => ip.payload(),
        _ => return Ok(()),
    };
    if payload.ip_number != IpNumber::SCTP {
        return Ok(());
    }
    let mut bytes = payload.payload.to_vec();
    let field: Vec<u8> = bytes.splice(8..12, [0; 4]).collect();
    if field == [0; 4] {
        return Ok(());
    }
    let mut register = u32::MAX;
    for byte in bytes {
        register ^= u32::from(byte.reverse_bits()) << 24;
        for _ in 0..8 {
            let high = register >> 31;
            register = (register << 1) ^ (high * POLYNOMIAL);
        }
    }
    let right = (!register).reverse_bits().to_le_bytes();
    if field == right {
        Ok(())
    } else {
        Err(format!(
            "SCTP checksum is {field:02x?}, should be {right:02x?}"
        ))
    }
}

fn icmp_v4(icmp: &Icmpv4Slice<'_>) -> Result<(), String> {
    let right = icmp.icmp_type().calc_checksum(icmp.payload());
    same("ICMP checksum", icmp.checksum(), right)
}

fn icmp_v6(icmp: &Icmpv6Slice<'_>, addresses: Addresses) -> Result<(), String> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = addresses else {
        return Err("ICMPv6 in IPv4".to_owned());
    };
    if icmp.is_checksum_valid(src.octets(), dst.octets()) {
        Ok(())
    } else {
        Err(format!("ICMPv6 checksum {:#06x} is wrong", icmp.checksum()))
    }
}

fn same(what: &str, found: u16, right: u16) -> Result<(), String> {
    if found == right {
        Ok(())
    } else {
        Err(format!("{what} is {found:#06x}, should be {right:#06x}"))
    }
}

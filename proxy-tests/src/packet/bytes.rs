//! Checksums, the slow and obvious way.

use std::net::IpAddr;

/// One's-complement sum over `chunks`, each padded to full words.
pub(crate) fn checksum(chunks: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for chunk in chunks {
        for pair in chunk.chunks(2) {
            let word = [pair[0], pair.get(1).copied().unwrap_or(0)];
            sum += u32::from(u16::from_be_bytes(word));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    !u16::try_from(sum).expect("a folded sum")
}

/// CRC-32C of an SCTP packet whose checksum field is zero, as it stands there
/// (RFC 9260 appendix A).
pub(crate) fn crc32c(bytes: &[u8]) -> [u8; 4] {
    let mut register = u32::MAX;
    for bit in bytes
        .iter()
        .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1))
    {
        let carry = (register & 1) ^ u32::from(bit);
        register = (register >> 1) ^ (carry * 0x82f6_3b78);
    }
    (!register).to_le_bytes()
}

/// The address as it stands in a header.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The pseudo header that transport checksums cover.
pub(crate) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).expect("a packet's length");
    let mut header = [octets(src), octets(dst)].concat();
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0, protocol]);
    header
}

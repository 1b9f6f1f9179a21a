//! Positions in a packet, found by code that the programs do not share and that
//! expects nothing of the packet.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use crate::{Family, packet::crc32c};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;
const ICMP_V4: u8 = 1;
const ICMP_V6: u8 = 58;
/// "No next header": the protocol of a chain of headers that cannot be read.
const NOTHING: u8 = 59;

/// An IP packet within other bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    bytes: &'a [u8],
    l3: usize,
    pub(super) l4: usize,
    /// Offset of the end of the packet, or of the bytes.
    pub(super) end: usize,
    /// The bytes end before the packet.
    cut: bool,
    pub(super) family: Family,
    pub(super) protocol: u8,
    /// A later fragment, which has no transport header.
    pub(super) later: bool,
    pub(super) fragment: bool,
}

impl<'a> Frame<'a> {
    /// The packet in an Ethernet frame or, on layer 3, by itself.
    pub(super) fn of(bytes: &'a [u8], layer3: bool) -> Option<Self> {
        if layer3 {
            return Self::at(bytes, 0, bytes.len());
        }
        let mut l3 = 14;
        while l3 <= 18 && matches!(word(bytes, l3 - 2)?, 0x8100 | 0x88a8) {
            l3 += 4;
        }
        let version = match word(bytes, l3 - 2)? {
            0x0800 => 4,
            0x86dd => 6,
            _ => return None,
        };
        (bytes.get(l3)? >> 4 == version)
            .then(|| Self::at(bytes, l3, bytes.len()))
            .flatten()
    }

    /// The packet that begins at `l3` and ends at `limit` at the latest.
    fn at(bytes: &'a [u8], l3: usize, limit: usize) -> Option<Self> {
        match bytes.get(l3)? >> 4 {
            4 => Self::v4(bytes, l3, limit),
            6 => Self::v6(bytes, l3, limit),
            _ => None,
        }
    }

    fn v4(bytes: &'a [u8], l3: usize, limit: usize) -> Option<Self> {
        let header = bytes.get(l3..l3 + 20)?;
        let length = usize::from(header[0] & 15) * 4;
        let fragment = word(header, 6)? & 0x3fff;
        let end = l3 + usize::from(word(header, 2)?);
        (length >= 20).then_some(Self {
            bytes,
            l3,
            l4: l3 + length,
            end: limit.min(end),
            cut: limit < end,
            family: Family::V4,
            protocol: header[9],
            later: fragment & 0x1fff != 0,
            fragment: fragment != 0,
        })
    }

    fn v6(bytes: &'a [u8], l3: usize, limit: usize) -> Option<Self> {
        let header = bytes.get(l3..l3 + 40)?;
        let end = l3 + 40 + usize::from(word(header, 4)?);
        let mut frame = Self {
            bytes,
            l3,
            l4: l3 + 40,
            end: limit.min(end),
            cut: limit < end,
            family: Family::V6,
            protocol: header[6],
            later: false,
            fragment: false,
        };
        while !frame.later && matches!(frame.protocol, 0 | 43 | 44 | 51 | 60) {
            let Some(extension) = bytes.get(frame.l4..frame.l4 + 8) else {
                frame.protocol = NOTHING;
                break;
            };
            let words = usize::from(extension[1]);
            let length = match frame.protocol {
                44 => {
                    let field = word(extension, 2)?;
                    frame.later |= field & 0xfff8 != 0;
                    frame.fragment |= field & 0xfff9 != 0;
                    8
                }
                51 => (words + 2) * 4,
                _ => (words + 1) * 8,
            };
            frame.protocol = extension[0];
            frame.l4 += length;
        }
        Some(frame)
    }

    pub(super) fn src(&self) -> IpAddr {
        self.address(self.addresses().start)
    }

    pub(super) fn dst(&self) -> IpAddr {
        let range = self.addresses();
        self.address(range.start + range.len() / 2)
    }

    fn address(&self, at: usize) -> IpAddr {
        match self.family {
            Family::V4 => {
                let octets: [u8; 4] = self.bytes[at..at + 4].try_into().expect("four bytes");
                Ipv4Addr::from(octets).into()
            }
            Family::V6 => {
                let octets: [u8; 16] = self.bytes[at..at + 16].try_into().expect("sixteen bytes");
                Ipv6Addr::from(octets).into()
            }
        }
    }

    /// Returns the range of both addresses.
    fn addresses(&self) -> Range<usize> {
        match self.family {
            Family::V4 => self.l3 + 12..self.l3 + 20,
            Family::V6 => self.l3 + 8..self.l3 + 40,
        }
    }

    /// Source and destination port; of protocols without ports and where there
    /// are none, zero.
    pub(super) fn ports(&self) -> (u16, u16) {
        let there = self.has_ports() && self.l4 + 4 <= self.end;
        let port = |at| word(self.bytes, at).filter(|_| there).unwrap_or(0);
        (port(self.l4), port(self.l4 + 2))
    }

    /// Source and destination.
    pub(super) fn ends(&self) -> (SocketAddr, SocketAddr) {
        let (from, to) = self.ports();
        let src = SocketAddr::new(self.src(), from);
        (src, SocketAddr::new(self.dst(), to))
    }

    pub(super) fn has_ports(&self) -> bool {
        !self.later && matches!(self.protocol, TCP | UDP | SCTP)
    }

    pub(super) fn is_icmp(&self) -> bool {
        self.protocol
            == match self.family {
                Family::V4 => ICMP_V4,
                Family::V6 => ICMP_V6,
            }
    }

    /// The byte of the transport header at `at`, if it is there.
    pub(super) fn transport_byte(&self, at: usize) -> Option<u8> {
        (!self.later && self.l4 + at < self.end).then(|| self.bytes.get(self.l4 + at).copied())?
    }

    /// Returns whether this is a TCP reset, or an SCTP chunk that ends an association as
    /// one would.
    pub(super) fn is_reset(&self) -> bool {
        match self.protocol {
            TCP => self
                .transport_byte(13)
                .is_some_and(|flags| flags & 0x04 != 0),
            SCTP => matches!(self.transport_byte(12), Some(6 | 14)),
            _ => false,
        }
    }

    /// Returns whether this opens a connection, or is of a protocol without any.
    pub(super) fn is_opener(&self) -> bool {
        match self.protocol {
            TCP => self
                .transport_byte(13)
                .is_some_and(|flags| flags & 0x12 == 2),
            SCTP => self.transport_byte(12) == Some(1),
            _ => true,
        }
    }

    /// Returns whether this is an ICMP message that is no echo request.
    pub(super) fn is_unaskable(&self) -> bool {
        let request = if self.family == Family::V4 { 8 } else { 128 };
        self.is_icmp() && !self.later && self.transport_byte(0) != Some(request)
    }

    /// Returns whether this is an `ICMPv6` redirect, which quotes a packet in its
    /// options.
    pub(super) fn is_redirect_v6(&self) -> bool {
        self.family == Family::V6 && self.is_icmp() && self.transport_byte(0) == Some(137)
    }

    /// The packet that an ICMP error quotes.
    pub(super) fn quote(&self) -> Option<Self> {
        let kind = self.transport_byte(0).filter(|_| self.is_icmp())?;
        let quotes = match self.family {
            Family::V4 => matches!(kind, 3 | 4 | 5 | 11 | 12),
            Family::V6 => matches!(kind, 1..=4),
        };
        quotes
            .then(|| {
                Self::at(
                    &self.bytes[..self.end.min(self.bytes.len())],
                    self.l4 + 8,
                    self.end,
                )
            })?
            .filter(|quote| quote.family == self.family)
    }

    /// Returns the offset of the transport checksum, if the packet has all of it.
    fn checksum_at(&self) -> Option<usize> {
        let at = self.l4
            + match self.protocol {
                TCP => 16,
                UDP => 6,
                _ if self.is_icmp() => 2,
                _ => return None,
            };
        (!self.later && at + 2 <= self.end).then_some(at)
    }

    /// The bytes that a translation may change, those of a quoted packet included.
    pub(super) fn may_change(&self) -> Vec<Range<usize>> {
        let mut places = vec![self.addresses()];
        if self.family == Family::V4 {
            places.push(self.l3 + 10..self.l3 + 12);
        }
        if self.has_ports() {
            places.push(self.l4..self.l4 + 4);
        }
        places.extend(self.checksum_at().map(|at| at..at + 2));
        if self.protocol == SCTP && !self.later {
            places.push(self.l4 + 8..self.l4 + 12);
        }
        places.extend(self.quote().iter().flat_map(Self::may_change));
        places
    }

    /// Returns the difference of each checksum from the right one, which no translation
    /// changes: also of a packet that is cut off.
    pub(super) fn residues(&self) -> Vec<(&'static str, Residue)> {
        let mut residues = Vec::new();
        if let (Family::V4, Some(header)) = (self.family, self.bytes.get(self.l3..self.l4)) {
            residues.push(("IPv4 header", Residue::Sum(sum(&[header]))));
        }
        let body = self.body();
        if let Some(at) = self.checksum_at() {
            let absent = self.protocol == UDP && word(self.bytes, at) == Some(0);
            let length = u32::try_from(body.len()).expect("a packet").to_be_bytes();
            let pseudo = [&self.bytes[self.addresses()], &length, &[0, self.protocol]].concat();
            let sum = match self.protocol {
                ICMP_V4 => sum(&[body]),
                _ => sum(&[&pseudo, body]),
            };
            let residue = if absent {
                Residue::Absent
            } else {
                Residue::Sum(sum)
            };
            residues.push(("transport", residue));
        }
        if self.protocol == SCTP && !self.fragment && !self.cut && body.len() >= 12 {
            let mut zeroed = body.to_vec();
            zeroed[8..12].fill(0);
            let field = u32::from_le_bytes(body[8..12].try_into().expect("four bytes"));
            residues.push(match field {
                0 => ("SCTP", Residue::Absent),
                field => (
                    "SCTP",
                    Residue::Crc(field ^ u32::from_le_bytes(crc32c(&zeroed))),
                ),
            });
        }
        residues
    }

    /// Hop limit or time to live.
    pub(super) fn ttl(&self) -> u8 {
        self.bytes[self.l3 + if self.family == Family::V4 { 8 } else { 7 }]
    }

    pub(super) fn is_echo_reply(&self) -> bool {
        let reply = if self.family == Family::V4 { 0 } else { 129 };
        self.is_icmp() && self.transport_byte(0) == Some(reply)
    }

    /// Returns the bytes after the IP header, or after the fragment header.
    pub(super) fn body(&self) -> &'a [u8] {
        self.bytes.get(self.l4..self.end).unwrap_or_default()
    }

    /// Returns whether the IPv4 header's checksum is wrong.
    pub(super) fn is_damaged(&self) -> bool {
        self.family == Family::V4
            && self
                .bytes
                .get(self.l3..self.l4)
                .is_none_or(|header| sum(&[header]) != 0)
    }
}

impl fmt::Display for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (src, dst) = self.ends();
        write!(f, "protocol {} {src} -> {dst}", self.protocol)?;
        if self.fragment {
            f.write_str(if self.later {
                ", later fragment"
            } else {
                ", first fragment"
            })?;
        }
        match self.quote() {
            Some(quote) => write!(f, ", about [{quote}]"),
            None => Ok(()),
        }
    }
}

/// Bytes as two digits each.
pub(super) struct Hex<'a>(pub(super) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The difference of a checksum from the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Residue {
    /// One's-complement sum over all that is covered. Zero: it is right.
    Sum(u16),
    /// Difference. Zero: it is right.
    Crc(u32),
    /// The sender left the checksum out.
    Absent,
}

/// One's-complement sum of `chunks`, each padded to full words. 0xffff is zero.
pub(super) fn sum(chunks: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in chunks.iter().flat_map(|chunk| chunk.chunks(2)) {
        let word = [pair[0], pair.get(1).copied().unwrap_or(0)];
        sum += u32::from(u16::from_be_bytes(word));
    }
    u16::try_from(sum % 0xffff).expect("a remainder")
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

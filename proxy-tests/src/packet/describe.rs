//! A packet described field by field, and its bytes.

use std::net::SocketAddr;

use super::bytes::{checksum, crc32c, octets, pseudo_header};
use crate::Family;

/// The MAC address of the device that test runs happen on, the loopback.
pub const MAC_SELF: [u8; 6] = [0; 6];
/// Whoever is on the other side.
pub const MAC_PEER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0a];
/// A host that is not this one.
pub const MAC_OTHER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0b];
/// The bridge that the device may be a port of.
pub const MAC_BRIDGE: [u8; 6] = [0x02, 0, 0, 0, 0, 0xbb];

const ICMP_V4: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;
const SCTP: u8 = 132;

/// Types of SCTP chunks.
pub mod chunk {
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const COOKIE_ECHO: u8 = 10;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// The transport protocol of an IP packet, with its header's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Tcp {
        flags: u8,
        seq: u32,
        ack: u32,
    },
    Udp,
    /// UDP whose sender left the checksum out.
    UdpUnchecked,
    /// The family's ICMP.
    Icmp {
        kind: u8,
        code: u8,
        rest: u32,
    },
    /// One chunk, whose value is the payload.
    Sctp {
        chunk: u8,
        /// The checksum is there, not left to the network card.
        finished: bool,
    },
    /// Any other protocol.
    Other(u8),
}

/// An IPv6 extension header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    HopByHop,
    Routing,
    Destination,
    /// A routing header with so many segments left.
    Segments(u8),
    /// Destination options of so many bytes, a multiple of eight up to 2048.
    Options(usize),
}

/// The part of a datagram that the packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub id: u16,
    /// In bytes, a multiple of eight.
    pub offset: u16,
    pub more: bool,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub body: Body,
    pub payload: Vec<u8>,
    pub mac_src: [u8; 6],
    pub mac_dst: [u8; 6],
    /// Ethertypes of VLAN tags, outermost first.
    pub tags: Vec<u16>,
    /// IPv4 options, whole words.
    pub options: Vec<u8>,
    /// IPv6 extension headers.
    pub extensions: Vec<Extension>,
    pub fragment: Option<Fragment>,
    pub ttl: u8,
    pub tos: u8,
    /// Bytes after the packet, as short Ethernet frames have.
    pub padding: usize,
    /// No Ethernet header.
    pub layer3: bool,
    /// Identification and flow label are zero, as in packets that the datapath
    /// makes up.
    pub generated: bool,
}

impl Packet {
    fn new(src: SocketAddr, dst: SocketAddr, body: Body) -> Self {
        assert_eq!(Family::of(src.ip()), Family::of(dst.ip()), "one family");
        Self {
            src,
            dst,
            body,
            payload: b"a payload of odd length".to_vec(),
            mac_src: MAC_PEER,
            mac_dst: MAC_SELF,
            tags: Vec::new(),
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            ttl: 61,
            tos: 0x2e,
            padding: 0,
            layer3: false,
            generated: false,
        }
    }

    /// A TCP segment with these flags.
    pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        let (seq, ack) = (0x1234_5678, if flags & 16 == 0 { 0 } else { 0x9abc_def0 });
        let mut packet = Self::new(src, dst, Body::Tcp { flags, seq, ack });
        if flags & (2 | 4) != 0 {
            packet.payload.clear();
        }
        packet
    }

    pub fn syn(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::tcp(src, dst, 2)
    }

    pub fn syn_ack(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::tcp(src, dst, 2 | 16)
    }

    /// A segment of an established connection.
    pub fn data(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::tcp(src, dst, 16 | 8)
    }

    pub fn fin(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::tcp(src, dst, 16 | 1)
    }

    pub fn rst(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::tcp(src, dst, 4)
    }

    pub fn udp(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::new(src, dst, Body::Udp)
    }

    /// An SCTP packet with a chunk of this type.
    pub fn sctp(src: SocketAddr, dst: SocketAddr, chunk: u8) -> Self {
        let finished = true;
        Self::new(src, dst, Body::Sctp { chunk, finished })
    }

    pub fn init(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::sctp(src, dst, chunk::INIT)
    }

    /// The same packet before the network card has filled in its checksum.
    #[must_use]
    pub fn unfinished(mut self) -> Self {
        match &mut self.body {
            Body::Sctp { finished, .. } => *finished = false,
            other => panic!("{other:?} cannot be left unfinished"),
        }
        self
    }

    pub fn icmp(src: SocketAddr, dst: SocketAddr, kind: u8, code: u8, rest: u32) -> Self {
        Self::new(src, dst, Body::Icmp { kind, code, rest })
    }

    /// A packet of another protocol.
    pub fn other(src: SocketAddr, dst: SocketAddr, protocol: u8) -> Self {
        Self::new(src, dst, Body::Other(protocol))
    }

    /// The same packet with another source.
    #[must_use]
    pub fn from(self, src: SocketAddr) -> Self {
        Self { src, ..self }
    }

    /// The same packet with another destination.
    #[must_use]
    pub fn to(self, dst: SocketAddr) -> Self {
        Self { dst, ..self }
    }

    /// The same packet with another payload.
    #[must_use]
    pub fn with_payload(self, payload: Vec<u8>) -> Self {
        Self { payload, ..self }
    }

    /// The same packet with its headers in a fragment.
    #[must_use]
    pub fn with_fragment(self, id: u16, offset: u16, more: bool) -> Self {
        let fragment = Some(Fragment { id, offset, more });
        Self { fragment, ..self }
    }

    /// The packet as the datapath writes it in answer to `refused`: back where
    /// that came from, with header fields of its own.
    #[must_use]
    pub fn answering(self, refused: &Packet) -> Self {
        Self {
            mac_dst: refused.mac_src,
            mac_src: refused.mac_dst,
            tags: refused.tags.clone(),
            ttl: 64,
            tos: 0,
            generated: true,
            ..self
        }
    }

    pub fn family(&self) -> Family {
        Family::of(self.src.ip())
    }

    /// IP protocol number of the body.
    pub fn protocol(&self) -> u8 {
        match self.body {
            Body::Tcp { .. } => TCP,
            Body::Udp | Body::UdpUnchecked => UDP,
            Body::Icmp { .. } if self.family() == Family::V4 => ICMP_V4,
            Body::Icmp { .. } => ICMP_V6,
            Body::Sctp { .. } => SCTP,
            Body::Other(protocol) => protocol,
        }
    }

    /// The whole frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.layer3 {
            bytes.extend(self.mac_dst);
            bytes.extend(self.mac_src);
            for tag in &self.tags {
                bytes.extend(tag.to_be_bytes());
                bytes.extend([0, 7]);
            }
            let ethertype: u16 = match self.family() {
                Family::V4 => 0x0800,
                Family::V6 => 0x86dd,
            };
            bytes.extend(ethertype.to_be_bytes());
        }
        bytes.extend(self.ip_bytes());
        bytes.extend(std::iter::repeat_n(0, self.padding));
        bytes
    }

    /// The packet from the IP header on.
    pub fn ip_bytes(&self) -> Vec<u8> {
        let body = self.body_bytes();
        match self.family() {
            Family::V4 => [self.v4_header(body.len()), body].concat(),
            Family::V6 => {
                let (first, extensions) = self.extension_bytes();
                let length = extensions.len() + body.len();
                [self.v6_header(first, length), extensions, body].concat()
            }
        }
    }

    /// Transport header and payload; of a later fragment the payload only.
    fn body_bytes(&self) -> Vec<u8> {
        if self.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return self.payload.clone();
        }
        let (src, dst) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
        let (header, checksum_at) = match self.body {
            Body::Tcp { flags, seq, ack } => {
                let mut header = [src, dst].concat();
                header.extend(seq.to_be_bytes());
                header.extend(ack.to_be_bytes());
                let window = if self.generated { [0; 2] } else { [0xfa, 0xf0] };
                header.extend([5 << 4, flags, window[0], window[1], 0, 0, 0, 0]);
                (header, Some(16))
            }
            Body::Udp | Body::UdpUnchecked => {
                let length = u16::try_from(8 + self.payload.len()).expect("a UDP length");
                let header = [src, dst, length.to_be_bytes(), [0, 0]].concat();
                (header, (self.body == Body::Udp).then_some(6))
            }
            Body::Icmp { kind, code, rest } => {
                let mut header = vec![kind, code, 0, 0];
                header.extend(rest.to_be_bytes());
                (header, Some(2))
            }
            Body::Sctp { chunk, finished } => return self.sctp_bytes(chunk, finished),
            Body::Other(_) => (Vec::new(), None),
        };
        let mut body = [header, self.payload.clone()].concat();
        if let Some(at) = checksum_at {
            let sum = self.body_checksum(&body);
            body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        body
    }

    /// SCTP header and one chunk.
    fn sctp_bytes(&self, kind: u8, finished: bool) -> Vec<u8> {
        let (src, dst) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
        // An INIT has no verification tag: the first word of its value is the
        // tag that it proposes.
        let tag = if kind == chunk::INIT {
            0
        } else {
            0x7a9d_ea00_u32
        };
        let length = u16::try_from(4 + self.payload.len()).expect("a chunk's length");
        let mut body = [src, dst].concat();
        body.extend(tag.to_be_bytes());
        body.extend([0; 4]);
        body.extend([kind, 0]);
        body.extend(length.to_be_bytes());
        body.extend(&self.payload);
        body.resize(body.len().next_multiple_of(4), 0);
        if finished {
            let sum = crc32c(&body);
            body[8..12].copy_from_slice(&sum);
        }
        body
    }

    fn body_checksum(&self, body: &[u8]) -> u16 {
        let pseudo = if self.protocol() == ICMP_V4 {
            Vec::new()
        } else {
            pseudo_header(self.src.ip(), self.dst.ip(), self.protocol(), body.len())
        };
        match checksum(&[&pseudo, body]) {
            0 if self.body == Body::Udp => 0xffff,
            sum => sum,
        }
    }

    fn v4_header(&self, body: usize) -> Vec<u8> {
        let words = 5 + self.options.len() / 4;
        let length = u16::try_from(words * 4 + body).expect("an IPv4 length");
        let fragment = self.fragment.unwrap_or(Fragment {
            id: if self.generated { 0 } else { 0x4242 },
            offset: 0,
            more: false,
        });
        let flags = (fragment.offset / 8)
            | if fragment.more { 0x2000 } else { 0 }
            | if self.fragment.is_none() { 0x4000 } else { 0 };
        let mut header = vec![0x40 | u8::try_from(words).expect("a length"), self.tos];
        header.extend(length.to_be_bytes());
        header.extend(fragment.id.to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend(octets(self.src.ip()));
        header.extend(octets(self.dst.ip()));
        header.extend(&self.options);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn v6_header(&self, next: u8, payload: usize) -> Vec<u8> {
        let label = if self.generated { [0; 2] } else { [0x12, 0x34] };
        let mut header = vec![0x60 | self.tos >> 4, self.tos << 4, label[0], label[1]];
        header.extend(u16::try_from(payload).expect("a length").to_be_bytes());
        header.extend([next, self.ttl]);
        header.extend(octets(self.src.ip()));
        header.extend(octets(self.dst.ip()));
        header
    }

    /// All extension headers, and the number of the first.
    fn extension_bytes(&self) -> (u8, Vec<u8>) {
        let mut next = self.protocol();
        let mut bytes = Vec::new();
        if let Some(fragment) = self.fragment {
            let mut header = vec![next, 0];
            header.extend((fragment.offset | u16::from(fragment.more)).to_be_bytes());
            header.extend(u32::from(fragment.id).to_be_bytes());
            bytes = header;
            next = 44;
        }
        for extension in self.extensions.iter().rev() {
            // Sixteen bytes each: a PadN option, or a routing header of an
            // unknown type with nothing left to visit.
            let (number, content, length) = match *extension {
                Extension::HopByHop => (0, [1, 12], 16),
                Extension::Destination => (60, [1, 12], 16),
                Extension::Routing => (43, [253, 0], 16),
                Extension::Segments(left) => (43, [253, left], 16),
                Extension::Options(length) => (60, [0, 0], length),
            };
            let words = u8::try_from(length / 8 - 1).expect("a header's length");
            let mut header = vec![next, words, content[0], content[1]];
            header.resize(length, 0);
            bytes = [header, bytes].concat();
            next = number;
        }
        (next, bytes)
    }
}

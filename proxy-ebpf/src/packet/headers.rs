//! Headers: all that the datapath knows of a packet.

use proxy_common::net::{BePort, Protocol};

/// The part of a datagram that a packet holds.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, with the transport header.
    First,
    /// A later fragment: ports are those of the first one, if it was seen.
    Later,
}

/// An IP header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ip<A> {
    pub src: A,
    pub dst: A,
    /// Fragment identification, network order.
    pub id: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// Offset of the packet's end. A frame may go on behind it.
    pub end: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Protocol that the fragment header names; the same for all fragments.
    pub fragment_protocol: Protocol,
    pub part: Part,
    /// The transport header is not all there or out of reach, or its checksum
    /// covers another destination. Ports are those that can be read, else zero.
    pub unreadable: bool,
}

/// All that the datapath knows of a packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Headers<A> {
    pub ip: Ip<A>,
    /// Offset of the IP header.
    pub l3: u32,
    /// Zero for protocols without ports.
    pub src_port: BePort,
    pub dst_port: BePort,
    /// Flags byte of the TCP header; of SCTP the flags that TCP would set for
    /// what the first chunk does; else zero.
    pub tcp_flags: u8,
}

/// Bits of [`Headers::tcp_flags`].
pub mod tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

impl<A> Headers<A> {
    #[inline(always)]
    pub fn of_ip(ip: Ip<A>, l3: u32) -> Self {
        Self {
            ip,
            l3,
            src_port: BePort::ZERO,
            dst_port: BePort::ZERO,
            tcp_flags: 0,
        }
    }

    /// Returns whether the protocol has ports that frontends are known by.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        self.ip.protocol == Protocol::UDP || self.ip.protocol.has_connections()
    }

    /// A TCP segment, or an SCTP INIT, that opens a connection.
    #[inline(always)]
    pub fn opens_connection(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// A TCP segment, or an SCTP INIT ACK, that accepts a connection.
    #[inline(always)]
    pub fn accepts_connection(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK
    }
}

/// Length of SCTP's header, which chunks follow.
pub const SCTP_HEADER: u32 = 12;

/// A half of the tuple.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

/// Offset of a side's port in the transport header.
#[inline(always)]
pub fn port_offset(side: Side) -> u32 {
    match side {
        Side::Source => 0,
        Side::Destination => 2,
    }
}

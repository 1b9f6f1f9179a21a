//! ICMP errors, named alike in both families.

use std::net::{IpAddr, SocketAddr};

use super::describe::{Body, Packet};
use crate::Family;

impl Packet {
    /// "Fragmentation needed", "packet too big", with the next hop's MTU.
    pub fn too_big(from: IpAddr, about: &Packet, quoted: usize) -> Self {
        Self::error(from, about, quoted, ((3, 4), (2, 0)), 1400)
    }

    /// "Port unreachable".
    pub fn port_unreachable(from: IpAddr, about: &Packet, quoted: usize) -> Self {
        Self::error(from, about, quoted, ((3, 3), (1, 4)), 0)
    }

    /// "Administratively prohibited".
    pub fn prohibited(from: IpAddr, about: &Packet, quoted: usize) -> Self {
        Self::error(from, about, quoted, ((3, 13), (1, 1)), 0)
    }

    /// "Time exceeded in transit".
    pub fn time_exceeded(from: IpAddr, about: &Packet, quoted: usize) -> Self {
        Self::error(from, about, quoted, ((11, 0), (3, 0)), 0)
    }

    /// "Echo request".
    pub fn echo(from: IpAddr, to: IpAddr) -> Self {
        let kind = if from.is_ipv4() { 8 } else { 128 };
        Self::icmp(without_port(from), without_port(to), kind, 0, 0x0001_0002)
    }

    /// The echo reply to a request, back where that came from.
    #[must_use]
    pub fn echo_reply(request: &Packet) -> Self {
        let mut reply = Self {
            src: request.dst,
            dst: request.src,
            mac_src: request.mac_dst,
            mac_dst: request.mac_src,
            ttl: 64,
            ..request.clone()
        };
        if let Body::Icmp { kind, .. } = &mut reply.body {
            *kind = if request.src.is_ipv4() { 0 } else { 129 };
        }
        reply
    }

    /// A redirect about `about`, which the receiver sent.
    pub fn redirect(from: IpAddr, about: &Packet) -> Self {
        let to = without_port(about.src.ip());
        let quote = about.ip_bytes();
        match about.family() {
            Family::V4 => Self::icmp(without_port(from), to, 5, 1, 0x0af4_0203)
                .with_payload(quote[..28].to_vec()),
            Family::V6 => {
                let mut payload = vec![0xfe; 32];
                let words = u8::try_from((quote.len() + 8).div_ceil(8)).expect("short");
                payload.extend([4, words, 0, 0, 0, 0, 0, 0]);
                payload.extend(&quote);
                payload.resize(32 + usize::from(words) * 8, 0);
                Self::icmp(without_port(from), to, 137, 0, 0).with_payload(payload)
            }
        }
    }

    /// An error that tells the sender of `about` by quoting the first `quoted`
    /// bytes of its transport header and payload.
    fn error(
        from: IpAddr,
        about: &Packet,
        quoted: usize,
        kinds: ((u8, u8), (u8, u8)),
        mtu: u32,
    ) -> Self {
        let whole = about.ip_bytes();
        let header = whole.len() - about.transport_len();
        let quote = whole[..whole.len().min(header + quoted)].to_vec();
        let (kind, code) = match about.family() {
            Family::V4 => kinds.0,
            Family::V6 => kinds.1,
        };
        let to = without_port(about.src.ip());
        Self::icmp(without_port(from), to, kind, code, mtu).with_payload(quote)
    }

    fn transport_len(&self) -> usize {
        let header = match self.body {
            Body::Tcp { .. } => 20,
            Body::Udp | Body::UdpUnchecked | Body::Icmp { .. } => 8,
            Body::Sctp { .. } => return 16 + self.payload.len().next_multiple_of(4),
            Body::Other(_) => 0,
        };
        header + self.payload.len()
    }
}

fn without_port(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 0)
}

//! Ports of fragments: the first one tells, the others ask (E21).

use proxy_common::fragment::{FragmentKey, FragmentPorts};

use crate::parse::{Headers, IpHeader, Part};

/// The hook a fragment is seen at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Ingress = 0,
    Egress = 1,
}

#[inline(always)]
fn key<F: IpHeader>(headers: &Headers<F::Addr>, hook: Hook) -> FragmentKey<F::Addr> {
    FragmentKey {
        src: headers.ip.src,
        dst: headers.ip.dst,
        id: headers.ip.id,
        protocol: headers.ip.fragment_protocol,
        egress: hook as u8,
        zero: [0; 2],
    }
}

/// Notes the ports of a first fragment. Call before the packet is rewritten.
#[inline(always)]
pub fn remember<F: IpHeader>(headers: &Headers<F::Addr>, hook: Hook) {
    if headers.ip.part == Part::First {
        store::<F>(headers, hook);
    }
}

#[inline(never)]
fn store<F: IpHeader>(headers: &Headers<F::Addr>, hook: Hook) {
    let ports = FragmentPorts {
        src: headers.src_port,
        dst: headers.dst_port,
        protocol: headers.ip.protocol,
        zero: [0; 3],
    };
    // A full LRU map makes room; without the record later fragments are
    // dropped and counted.
    let _ = F::fragments().insert(key::<F>(headers, hook), ports, 0);
}

/// Completes a later fragment with the ports of its datagram. `false`: they
/// are not known.
#[inline(never)]
pub fn complete<F: IpHeader>(headers: &mut Headers<F::Addr>, hook: Hook) -> bool {
    // SAFETY: the value is copied at once; a recycled element would name ports
    // whose flow then does not match the packet's addresses.
    let Some(ports) = (unsafe { F::fragments().get(key::<F>(headers, hook)) }) else {
        return false;
    };
    headers.src_port = ports.src;
    headers.dst_port = ports.dst;
    headers.ip.protocol = ports.protocol;
    true
}

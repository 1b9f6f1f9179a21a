//! Ports of fragments: the first one tells, the others ask (E21).

use proxy_common::{
    fragment::{FragmentKey, FragmentPorts},
    net::BePort,
};

use crate::{
    maps::tables::Tables,
    packet::headers::{Headers, Part},
};

/// The hook a fragment is seen at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Ingress = 0,
    Egress = 1,
}

/// [`FragmentKey::hook`] of the note about replies.
const REPLIES: u8 = 2;

#[inline(always)]
fn key<F: Tables>(headers: &Headers<F::Addr>, hook: Hook) -> FragmentKey<F::Addr> {
    FragmentKey {
        src: headers.ip.src,
        dst: headers.ip.dst,
        id: headers.ip.id,
        protocol: headers.ip.fragment_protocol,
        hook: hook as u8,
        zero: [0; 2],
    }
}

#[inline(always)]
fn replies_key<F: Tables>(headers: &Headers<F::Addr>) -> FragmentKey<F::Addr> {
    FragmentKey {
        id: 0,
        hook: REPLIES,
        ..key::<F>(headers, Hook::Egress)
    }
}

/// Notes the ports of a first fragment. Call before the packet is rewritten.
#[inline(always)]
pub fn remember<F: Tables>(headers: &Headers<F::Addr>, hook: Hook) {
    if headers.ip.part == Part::First {
        store::<F>(headers, hook);
    }
}

#[inline(never)]
fn store<F: Tables>(headers: &Headers<F::Addr>, hook: Hook) {
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

/// [`remember`] for a reply that leaves. From now on fragments from this backend
/// to this client are waited for: see [`is_reply`].
#[inline(always)]
pub fn remember_reply<F: Tables>(headers: &Headers<F::Addr>) {
    if headers.ip.part == Part::First {
        store::<F>(headers, Hook::Egress);
        note_replies::<F>(headers);
    }
}

#[inline(never)]
fn note_replies<F: Tables>(headers: &Headers<F::Addr>) {
    if !is_reply::<F>(headers) {
        let nothing = FragmentPorts {
            src: BePort::ZERO,
            dst: BePort::ZERO,
            protocol: headers.ip.protocol,
            zero: [0; 3],
        };
        let _ = F::fragments().insert(replies_key::<F>(headers), nothing, 0);
    }
}

/// Returns whether fragments that leave from this source to this destination have been
/// replies of a flow. Without ports nothing else tells them from fragments of
/// datagrams that the two exchange directly.
#[inline(never)]
pub fn is_reply<F: Tables>(headers: &Headers<F::Addr>) -> bool {
    // SAFETY: only asks whether it is there.
    unsafe { F::fragments().get(replies_key::<F>(headers)) }.is_some()
}

/// Completes a later fragment with the ports of its datagram. `false`: they
/// are not known.
#[inline(never)]
pub fn complete<F: Tables>(headers: &mut Headers<F::Addr>, hook: Hook) -> bool {
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

//! Reply tuples: how replies to an address of this node find their flow.

use proxy_common::{
    flow::{Flow, FlowKey},
    masquerade::MasqueradeKey,
};

use crate::{
    flow::{record::Record, table},
    maps::{prefilter, tables::Tables},
    packet::headers::Headers,
};

/// Returns whether a packet is a reply that is translated by its reply tuple. Sets tuple
/// and key.
#[inline(never)]
pub fn is_reply<F: Tables>(
    headers: &Headers<F::Addr>,
    reply: &mut MasqueradeKey<F::Addr>,
    key: &mut FlowKey<F::Addr>,
) -> bool {
    client_of::<F>(headers, reply, key)
        .is_some_and(|record| record.flow().flags & Flow::<F::Addr>::OUTGOING == 0)
}

/// The flow that a packet answers. Sets the tuple to the packet's, and the key to the
/// flow's.
#[inline(always)]
pub fn client_of<F: Tables>(
    headers: &Headers<F::Addr>,
    reply: &mut MasqueradeKey<F::Addr>,
    key: &mut FlowKey<F::Addr>,
) -> Option<Record<F>> {
    *reply = MasqueradeKey {
        backend_addr: headers.ip.src,
        masquerade_addr: headers.ip.dst,
        backend_port: headers.src_port,
        masquerade_port: headers.dst_port,
        protocol: headers.ip.protocol,
        zero: [0; 3],
    };
    client::<F>(reply, key)
}

/// The flow whose packet to the backend, with a changed port, is this one. Sets the tuple
/// to the packet's, and the key to the flow's.
#[inline(always)]
pub fn with_changed_port<F: Tables>(
    headers: &Headers<F::Addr>,
    reply: &mut MasqueradeKey<F::Addr>,
    key: &mut FlowKey<F::Addr>,
) -> Option<Record<F>> {
    *reply = request_tuple::<F>(headers);
    if !prefilter::slow::may_be_masquerade::<F>(&reply.masquerade_addr) {
        return None;
    }
    let record = client::<F>(reply, key)?;
    let flow = record.flow();
    (!is_masquerade::<F>(flow, reply)).then_some(record)
}

/// Returns whether a flow may have changed the port of this packet to a backend.
#[inline(always)]
pub fn may_have_changed_port<F: Tables>(headers: &Headers<F::Addr>) -> bool {
    let key = request_tuple::<F>(headers);
    // SAFETY: only asks whether it is there.
    prefilter::may_be_masquerade::<F>(&key.masquerade_addr)
        && unsafe { F::masquerades().get(key) }.is_some()
}

/// The reply tuple of a flow whose packet to the backend is this one.
#[inline(always)]
pub fn request_tuple<F: Tables>(headers: &Headers<F::Addr>) -> MasqueradeKey<F::Addr> {
    MasqueradeKey {
        backend_addr: headers.ip.dst,
        masquerade_addr: headers.ip.src,
        backend_port: headers.dst_port,
        masquerade_port: headers.src_port,
        protocol: headers.ip.protocol,
        zero: [0; 3],
    }
}

/// Returns whether replies to the flow's masquerade address bear this tuple.
#[inline(always)]
pub fn is_masquerade<F: Tables>(flow: &Flow<F::Addr>, reply: &MasqueradeKey<F::Addr>) -> bool {
    flow.masquerade_addr == reply.masquerade_addr && flow.masquerade_port == reply.masquerade_port
}

/// The flow that has this reply tuple. Sets the key to the flow's.
#[inline(never)]
pub fn client<F: Tables>(
    reply: &MasqueradeKey<F::Addr>,
    key: &mut FlowKey<F::Addr>,
) -> Option<Record<F>> {
    // SAFETY: the value is copied at once, and the flow it names is compared
    // with the tuple below.
    *key = *unsafe { F::masquerades().get(reply) }?;
    let record = table::get::<F>(key)?;
    has_reply::<F>(key, record.flow(), reply).then_some(record)
}

/// Returns whether a reply tuple is one of this flow's.
#[inline(always)]
pub fn has_reply<F: Tables>(
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    reply: &MasqueradeKey<F::Addr>,
) -> bool {
    let changed = flow.changed_port == reply.masquerade_port && key.addr == reply.masquerade_addr;
    flow.backend_addr == reply.backend_addr && (changed || is_masquerade::<F>(flow, reply))
}

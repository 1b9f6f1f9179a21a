//! The flow table: finds flows and removes them.

use proxy_common::{
    family::{V4, V6},
    flow::{Flow, FlowKey},
    masquerade::MasqueradeKey,
    net::{AddrV4, AddrV6, BePort, Protocol},
};

use crate::{
    flow::record::Record,
    maps::tables::Tables,
    packet::{
        barrier::masked,
        headers::{Headers, tcp},
    },
};

/// The key under which this packet's sender has its flows.
#[inline(always)]
pub fn client_key<F: Tables>(headers: &Headers<F::Addr>) -> FlowKey<F::Addr> {
    FlowKey::new(headers.ip.src, headers.src_port, headers.ip.protocol)
}

/// The key under which this packet's receiver has its flows.
#[inline(always)]
pub fn reply_key<F: Tables>(headers: &Headers<F::Addr>) -> FlowKey<F::Addr> {
    FlowKey::new(headers.ip.dst, headers.dst_port, headers.ip.protocol)
}

/// The record of this very key.
#[inline(always)]
pub fn get<F: Tables>(key: &FlowKey<F::Addr>) -> Option<Record<F>> {
    // SAFETY: a value of the table.
    unsafe { Record::new(F::flows().get_ptr_mut(key)?) }
}

/// The client's flow to this frontend. Sets the key's index to it.
#[inline(never)]
pub fn to_frontend<F: Tables>(
    key: &mut FlowKey<F::Addr>,
    addr: &F::Addr,
    port: BePort,
) -> Option<Record<F>> {
    find::<F>(key, |flow| is_to::<F>(flow, addr, port))
}

/// The record of this very key, if it is the client's flow to this frontend: two
/// packets that open flows at the same time may have chosen one key.
#[inline(always)]
pub fn opened<F: Tables>(
    key: &FlowKey<F::Addr>,
    addr: &F::Addr,
    port: BePort,
) -> Option<Record<F>> {
    get::<F>(key).filter(|record| is_to::<F>(record.flow(), addr, port))
}

#[inline(always)]
fn is_to<F: Tables>(flow: &Flow<F::Addr>, addr: &F::Addr, port: BePort) -> bool {
    flow.frontend_port == port
        && flow.frontend_addr == *addr
        && flow.flags & Flow::<F::Addr>::OUTGOING == 0
}

/// The client's flow to this backend that needs no other port. Sets the key's
/// index to it.
#[inline(never)]
pub fn to_backend<F: Tables>(
    key: &mut FlowKey<F::Addr>,
    addr: &F::Addr,
    port: BePort,
) -> Option<Record<F>> {
    find::<F>(key, |flow| {
        flow.backend_port == port
            && flow.backend_addr == *addr
            && flow.flags & Flow::<F::Addr>::CHANGE_PORT == 0
    })
}

#[inline(always)]
fn find<F: Tables>(
    key: &mut FlowKey<F::Addr>,
    matches: impl Fn(&Flow<F::Addr>) -> bool,
) -> Option<Record<F>> {
    key.index = 0;
    let first = get::<F>(key)?;
    if matches(first.flow()) {
        return Some(first);
    }
    // A counter of its own: the verifier does not follow one in memory.
    let mut index = 1_u32;
    while index <= LAST_INDEX && index <= first.highest() {
        key.index = index as u8;
        if let Some(record) = get::<F>(key)
            && matches(record.flow())
        {
            return Some(record);
        }
        index += 1;
    }
    None
}

/// Highest index of a client port's records.
pub const LAST_INDEX: u32 = FlowKey::<AddrV4>::MAX_INDEX as u32;

/// Notes that a packet of a client leaves as it is for the backend of its flow: see
/// [`Record::leave`].
#[inline(always)]
pub fn leave_unchanged<F: Tables>(headers: &Headers<F::Addr>) {
    let changes =
        Flow::<F::Addr>::MASQUERADE | Flow::<F::Addr>::CHANGE_PORT | Flow::<F::Addr>::OUTGOING;
    if (headers.opens_connection() || headers.tcp_flags & tcp::RST != 0)
        && let Some(record) = get::<F>(&client_key::<F>(headers))
    {
        let flow = record.flow();
        if flow.backend_port == headers.dst_port
            && flow.backend_addr == headers.ip.dst
            && flow.flags & changes == 0
        {
            record.leave(headers);
        }
    }
}

/// Removes a record with all that belongs to it. Record 0 stays while others
/// of the client port are found through it, but matches nothing any more: its
/// flags are such that neither direction's packets follow it.
#[inline(always)]
fn remove_record<F: Tables>(key: FlowKey<F::Addr>) {
    let key = &key;
    let Some(record) = get::<F>(key) else {
        return;
    };
    if key.index != 0 || record.highest() == 0 {
        delete::<F>(key, record);
        return;
    }
    forget_replies::<F>(key, record.flow());
    record.vacate();
}

/// Removes a record and its reply tuples.
#[inline(always)]
pub fn delete<F: Tables>(key: &FlowKey<F::Addr>, record: Record<F>) {
    forget_replies::<F>(key, record.flow());
    // Gone already is as good.
    let _ = F::flows().remove(key);
}

/// Removes a flow's reply tuples.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy would take stack"
)]
#[inline(always)]
pub fn forget_replies<F: Tables>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) {
    // The compiler would fill an array of zeros by a call, whose frame is one too many
    // for what packets of the host go through: older kernels round each frame up to 32.
    let [protocol, zero @ ..] = (masked::<0xff>(key.protocol.0.into()) as u32).to_le_bytes();
    // One key for both: each takes stack.
    let mut reply = MasqueradeKey {
        backend_addr: flow.backend_addr,
        masquerade_addr: flow.masquerade_addr,
        backend_port: flow.backend_port,
        masquerade_port: flow.masquerade_port,
        protocol: Protocol(protocol),
        zero,
    };
    if reply.masquerade_port != BePort::ZERO {
        let _ = F::masquerades().remove(&reply);
    }
    if flow.changed_port != BePort::ZERO {
        reply.masquerade_addr = key.addr;
        reply.masquerade_port = flow.changed_port;
        let _ = F::masquerades().remove(&reply);
    }
}

/// [`remove_record`] as a function that the verifier looks at once.
pub trait Remove: Tables {
    /// Removes the record of this key with all that belongs to it.
    fn remove(key: &FlowKey<Self::Addr>);
}

macro_rules! family_remove {
    ($family:ident, $addr:ident, $remove:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $remove(key: *const FlowKey<$addr>) -> u32 {
            // SAFETY: the verifier sees to it that this is null or valid, and the
            // caller has lent it.
            if let Some(key) = unsafe { key.as_ref() } {
                remove_record::<$family>(*key);
            }
            0
        }

        impl Remove for $family {
            #[inline(always)]
            fn remove(key: &FlowKey<$addr>) {
                $remove(key);
            }
        }
    };
}

family_remove!(V4, AddrV4, remove_v4);

family_remove!(V6, AddrV6, remove_v6);

//! The place of a client port's next flow in the table.

use proxy_common::{
    counter::Counter,
    family::{V4, V6},
    flow::{Flow, FlowKey},
    net::{AddrV4, AddrV6, Protocol},
};

use crate::{
    counters::count,
    flow::{record, table},
    maps::tables::{self, Tables},
    packet::{barrier::opaque, headers::Headers, verdict::Opened},
};

/// `EEXIST`, as helpers return it.
const EEXIST: i32 = -17;

/// The place of a client's new record.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Place {
    /// All records of the client port are in use.
    None,
    Free,
    /// The client's record for the same frontend, or one that is closing.
    Replace,
}

impl Place {
    /// The place with this number.
    #[inline(always)]
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Free,
            2 => Self::Replace,
            _ => Self::None,
        }
    }
}

/// Finds a place for the flow of a packet, and sets the key to it.
#[inline(always)]
fn place<F: Tables>(headers: &Headers<F::Addr>, at: &mut FlowKey<F::Addr>) -> Place {
    let mut key = table::client_key::<F>(headers);
    *at = key;
    let Some(first) = table::get::<F>(&key) else {
        return Place::Free;
    };
    let (mut place, mut chosen) = (Place::None, 0_u8);
    let mut index = 0_u32;
    while index <= table::LAST_INDEX && index <= first.highest() + 1 {
        key.index = index as u8;
        let mut same = false;
        let found = match table::get::<F>(&key) {
            None => Place::Free,
            Some(record) => {
                let flow = record.flow();
                same =
                    flow.frontend_port == headers.dst_port && flow.frontend_addr == headers.ip.dst;
                let over = record::is_vacant(flow)
                    || headers.ip.protocol.has_connections() && record::is_closing(flow);
                if same || over {
                    Place::Replace
                } else {
                    Place::None
                }
            }
        };
        if same || place == Place::None && found != Place::None {
            place = opaque(found);
            chosen = opaque(index as u8);
        }
        if same {
            break;
        }
        index += 1;
    }
    at.index = chosen;
    place
}

/// Returns whether the record with this key is of a flow to what a packet is addressed
/// to, which is no frontend any more. What this node opens from a NodePort has none.
#[inline(never)]
pub fn has_lost_its_frontend<F: Tables>(
    key: &FlowKey<F::Addr>,
    headers: &Headers<F::Addr>,
) -> bool {
    table::get::<F>(key).is_some_and(|record| {
        let flow = record.flow();
        flow.flags & Flow::<F::Addr>::OUTGOING == 0
            && flow.frontend_port == headers.dst_port
            && flow.frontend_addr == headers.ip.dst
    })
}

/// Returns whether another flow of the client port leads to the flow's backend, or one of
/// the backend's to the client port.
#[inline(always)]
fn is_taken<F: Tables>(key: &FlowKey<F::Addr>, wanted: &Flow<F::Addr>) -> bool {
    let mut taken = opaque(would_answer::<F>(key, wanted));
    let mut key = *key;
    let own = key.index;
    let mut index = 0_u32;
    while !taken && index <= table::LAST_INDEX {
        key.index = index as u8;
        if let Some(record) = table::get::<F>(&key) {
            let flow = record.flow();
            taken = opaque(
                key.index != own
                    && flow.backend_port == wanted.backend_port
                    && flow.backend_addr == wanted.backend_addr,
            );
        }
        index += 1;
    }
    taken
}

/// Enters a flow under this key.
#[inline(never)]
pub fn insert<F: Tables>(key: &FlowKey<F::Addr>, flow: &mut Flow<F::Addr>, place: Place) -> Opened {
    let replace = place == Place::Replace;
    if replace {
        if let Some(old) = table::get::<F>(key) {
            flow.highest = old.highest() as u8;
            table::forget_replies::<F>(key, old.flow());
        }
        count(Counter::FlowReselected);
    } else if key.index > 0 {
        // Raised before the record exists, so that nobody overlooks it.
        raise_highest::<F>(key);
    }
    let mode = if replace {
        tables::BPF_ANY
    } else {
        tables::BPF_NOEXIST
    };
    let flow = &*flow;
    match F::flows().insert(key, flow, mode) {
        Ok(()) => {
            if !replace {
                count(Counter::FlowCreated);
            }
            Opened::Flow
        }
        // Another CPU opened the flow with a packet of its own.
        Err(EEXIST) => Opened::Flow,
        Err(_) => Opened::FlowTableFull,
    }
}

#[inline(always)]
fn raise_highest<F: Tables>(key: &FlowKey<F::Addr>) {
    if let Some(first) = table::get::<F>(&key.with_index(0)) {
        first.raise_highest(key.index);
    }
}

/// Returns whether packets from a flow's client to its backend would be answers to a
/// question of that backend's.
#[inline(always)]
fn would_answer<F: Tables>(client: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
    if client.protocol != Protocol::UDP {
        return false;
    }
    let mut key = *client;
    key.addr = flow.backend_addr;
    key.port = flow.backend_port;
    table::to_backend::<F>(&mut key, &client.addr, client.port)
        .is_some_and(|record| is_note(record.flow()))
}

#[inline(always)]
pub fn is_note<A>(flow: &Flow<A>) -> bool {
    flow.flags & (Flow::<A>::OUTGOING | Flow::<A>::MASQUERADE) == Flow::<A>::OUTGOING
}

/// [`place`] and [`is_taken`] as functions that the verifier looks at once.
pub trait Placing: Tables {
    /// Finds a place for the flow of a packet, and sets the key to it.
    fn place(headers: &Headers<Self::Addr>, key: &mut FlowKey<Self::Addr>) -> Place;
    /// Returns whether another flow of the client port leads to the flow's backend, or
    /// one of the backend's to the client port.
    fn is_taken(key: &FlowKey<Self::Addr>, flow: &Flow<Self::Addr>) -> bool;
}

macro_rules! family_placing {
    ($family:ident, $addr:ident, $place:ident, $is_taken:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $place(headers: *const Headers<$addr>, key: *mut FlowKey<$addr>) -> u32 {
            // SAFETY: the verifier sees to it that these are null or valid, and the
            // caller has lent them. The same below.
            match unsafe { (headers.as_ref(), key.as_mut()) } {
                (Some(headers), Some(key)) => place::<$family>(headers, key) as u32,
                _ => 0,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $is_taken(key: *const FlowKey<$addr>, flow: *const Flow<$addr>) -> u32 {
            // SAFETY: see above.
            match unsafe { (key.as_ref(), flow.as_ref()) } {
                (Some(key), Some(flow)) => is_taken::<$family>(key, flow).into(),
                _ => 0,
            }
        }

        impl Placing for $family {
            #[inline(always)]
            fn place(headers: &Headers<$addr>, key: &mut FlowKey<$addr>) -> Place {
                Place::from_number($place(headers, key))
            }
            #[inline(always)]
            fn is_taken(key: &FlowKey<$addr>, flow: &Flow<$addr>) -> bool {
                $is_taken(key, flow) != 0
            }
        }
    };
}

family_placing!(V4, AddrV4, place_v4, is_taken_v4);
family_placing!(V6, AddrV6, place_v6, is_taken_v6);

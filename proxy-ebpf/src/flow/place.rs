//! Where a client port's next flow goes in the table.

use proxy_common::{
    counter::Counter,
    family::{V4, V6},
    flow::{Flow, FlowKey},
    net::{AddrV4, AddrV6, Protocol},
};

use crate::{
    counters::count,
    flow::{record, table},
    maps::{
        scratch::Scratch,
        tables::{self, Tables},
    },
    packet::{barrier::opaque, verdict::Opened},
};

/// `EEXIST`, as helpers return it.
const EEXIST: i32 = -17;

/// Where a client's new record goes.
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

/// Finds a place and sets the scratch key to it.
#[inline(always)]
fn place<F: Tables>(scratch: &mut Scratch<F::Addr>) -> Place {
    let mut key = table::client_key::<F>(&scratch.headers);
    scratch.key = key;
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
                same = flow.frontend_port == scratch.headers.dst_port
                    && flow.frontend_addr == scratch.headers.ip.dst;
                let over = record::is_vacant(flow)
                    || scratch.headers.ip.protocol.has_connections() && record::is_closing(flow);
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
    scratch.key.index = chosen;
    place
}

/// Returns whether the record with the key in scratch memory is of a flow to what the
/// packet is addressed to, which is no frontend any more. What this node opens
/// from a NodePort has none.
#[inline(never)]
pub fn has_lost_its_frontend<F: Tables>(scratch: &Scratch<F::Addr>) -> bool {
    let headers = &scratch.headers;
    table::get::<F>(&scratch.key).is_some_and(|record| {
        let flow = record.flow();
        flow.flags & Flow::<F::Addr>::OUTGOING == 0
            && flow.frontend_port == headers.dst_port
            && flow.frontend_addr == headers.ip.dst
    })
}

/// Returns whether another flow of the client port leads to the scratch flow's backend,
/// or one of the backend's to the client port.
#[inline(always)]
fn is_taken<F: Tables>(scratch: &Scratch<F::Addr>) -> bool {
    let mut key = scratch.key;
    let own = key.index;
    let mut taken = opaque(would_answer::<F>(scratch));
    let mut index = 0_u32;
    while !taken && index <= table::LAST_INDEX {
        key.index = index as u8;
        if let Some(record) = table::get::<F>(&key) {
            let flow = record.flow();
            taken = opaque(
                key.index != own
                    && flow.backend_port == scratch.flow.backend_port
                    && flow.backend_addr == scratch.flow.backend_addr,
            );
        }
        index += 1;
    }
    taken
}

/// Enters the scratch flow under the scratch key.
#[inline(never)]
pub fn insert<F: Tables>(scratch: &mut Scratch<F::Addr>, place: Place) -> Opened {
    let replace = place == Place::Replace;
    if replace {
        if let Some(old) = table::get::<F>(&scratch.key) {
            scratch.flow.highest = old.highest() as u8;
            table::forget_replies::<F>(&scratch.key, old.flow());
        }
        count(Counter::FlowReselected);
    } else if scratch.key.index > 0 {
        // Raised before the record exists, so that nobody overlooks it.
        raise_highest::<F>(&scratch.key);
    }
    let mode = if replace {
        tables::BPF_ANY
    } else {
        tables::BPF_NOEXIST
    };
    let (key, flow) = (&scratch.key, &scratch.flow);
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

/// Returns whether packets from the scratch flow's client to its backend would be answers
/// to a question of that backend's.
#[inline(always)]
pub fn would_answer<F: Tables>(scratch: &Scratch<F::Addr>) -> bool {
    let client = scratch.key;
    if client.protocol != Protocol::UDP {
        return false;
    }
    let flow = &scratch.flow;
    let mut key = client;
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
    /// Finds a place for the flow of the packet in scratch memory, and sets the scratch
    /// key to it.
    fn place(scratch: &mut Scratch<Self::Addr>) -> Place;
    /// Returns whether another flow of the client port leads to the scratch flow's
    /// backend, or one of the backend's to the client port.
    fn is_taken(scratch: &Scratch<Self::Addr>) -> bool;
}

macro_rules! family_placing {
    ($family:ident, $addr:ident, $place:ident, $is_taken:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $place(scratch: *mut Scratch<$addr>) -> u32 {
            // SAFETY: the verifier sees to it that this is null or valid, and the
            // caller has lent it. The same below.
            unsafe { scratch.as_mut() }.map_or(0, |scratch| place::<$family>(scratch) as u32)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $is_taken(scratch: *const Scratch<$addr>) -> u32 {
            // SAFETY: see above.
            unsafe { scratch.as_ref() }.map_or(0, |scratch| is_taken::<$family>(scratch).into())
        }

        impl Placing for $family {
            #[inline(always)]
            fn place(scratch: &mut Scratch<$addr>) -> Place {
                Place::from_number($place(scratch))
            }
            #[inline(always)]
            fn is_taken(scratch: &Scratch<$addr>) -> bool {
                $is_taken(scratch) != 0
            }
        }
    };
}

family_placing!(V4, AddrV4, place_v4, is_taken_v4);
family_placing!(V6, AddrV6, place_v6, is_taken_v6);

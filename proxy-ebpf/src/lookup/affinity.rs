//! Session affinity: leads a client to the backend it had last (S71–S76).

use proxy_common::{
    affinity::{Affinity, AffinityKey},
    backend::Backend,
    flow::ticks_from_seconds,
    service::SessionAffinity,
};

use crate::{
    clock::now,
    maps::{scratch::Scratch, tables::Tables},
};

/// The affinity of a row of `SERVICES`.
#[inline(always)]
pub fn of<F: Tables>(service: u32) -> SessionAffinity {
    let Some(service) = F::services().get_ptr(service) else {
        return SessionAffinity::NONE;
    };
    // SAFETY: a row of an array lives as long as the program; eight aligned
    // bytes, read in one access.
    unsafe {
        core::mem::transmute::<u64, SessionAffinity>(
            (&raw const (*service).session_affinity)
                .cast::<u64>()
                .read_volatile(),
        )
    }
}

/// The row of the backend that the client in scratch memory is to have again.
/// What it used by this set comes first; what it used by the other one counts
/// if this set has it too (S73).
#[inline(never)]
pub fn recall<F: Tables>(
    scratch: &mut Scratch<F::Addr>,
    session_affinity: SessionAffinity,
    local: bool,
) -> Option<u32> {
    let own = u32::from(local);
    by_set::<F>(scratch, session_affinity, own, own)
        .or_else(|| by_set::<F>(scratch, session_affinity, own ^ 1, own))
}

/// What the client used by `set`, if `member` has it too.
#[inline(never)]
fn by_set<F: Tables>(
    scratch: &mut Scratch<F::Addr>,
    session_affinity: SessionAffinity,
    set: u32,
    member: u32,
) -> Option<u32> {
    scratch.affinity_key = AffinityKey {
        client: scratch.headers.ip.src,
        service: scratch.frontend.service,
        set,
    };
    let key = &scratch.affinity_key;
    // SAFETY: every field that is used is compared below with what it must be;
    // an entry that another client takes over meanwhile leads to a backend of
    // this very Service port or to none.
    let affinity = unsafe { F::affinities().get(key) }?;
    let wanted = if member == 0 {
        Backend::<F::Addr>::CLUSTER
    } else {
        Backend::<F::Addr>::LOCAL
    };
    row::<F>(affinity, session_affinity, scratch.frontend.service, wanted)
}

/// The row of `BACKENDS` that an entry remembers, if it still counts: not for
/// too long, of this Service port, and a member of the `wanted` set (S72–S75).
#[inline(always)]
pub fn row<F: Tables>(
    affinity: &Affinity,
    session_affinity: SessionAffinity,
    service: u32,
    wanted: u8,
) -> Option<u32> {
    let age = now().wrapping_sub(affinity.last_used);
    if affinity.round != session_affinity.round
        || age > ticks_from_seconds(session_affinity.seconds)
    {
        return None;
    }
    let row = affinity.backend;
    let backend = F::backends().get(row)?;
    (backend.flags & wanted != 0
        && backend.service == service
        && backend.generation == affinity.generation
        && backend.epoch == affinity.epoch)
        .then_some(row)
}

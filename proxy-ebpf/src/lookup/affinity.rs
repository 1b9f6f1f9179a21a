//! Session affinity: leads a client to the backend it had last (S71–S76).

use proxy_common::{
    affinity::{Affinity, AffinityKey},
    backend::Backend,
    flow::ticks_from_seconds,
    frontend::Frontend,
    service::SessionAffinity,
};

use crate::{
    clock::now,
    maps::{self, tables::Tables},
};

/// The affinity of a row of `SERVICES`.
#[inline(always)]
pub fn of<F: Tables>(service: u32) -> SessionAffinity {
    let Some(service) = F::services().get_ptr(service) else {
        return SessionAffinity::NONE;
    };
    // SAFETY: a field of a row; two numbers.
    unsafe { maps::read_at_once(&raw const (*service).session_affinity) }
}

/// The key of what a client used by the frontend's set.
#[inline(always)]
pub fn key<A: Copy>(client: &A, frontend: Frontend) -> AffinityKey<A> {
    AffinityKey {
        client: *client,
        service: frontend.service,
        set: u32::from(frontend.flags & Frontend::LOCAL_SET != 0),
    }
}

/// The row of the backend that a client is to have again. What it used by the key's set
/// comes first; what it used by the other one counts if this set has it too (S73).
#[inline(never)]
pub fn recall<F: Tables>(
    key: &mut AffinityKey<F::Addr>,
    session_affinity: SessionAffinity,
) -> Option<u32> {
    let own = key.set;
    by_set::<F>(key, session_affinity, own).or_else(|| {
        key.set = own ^ 1;
        by_set::<F>(key, session_affinity, own)
    })
}

/// The row of the backend that the client used by the key's set, if `member` has it too.
#[inline(never)]
fn by_set<F: Tables>(
    key: &AffinityKey<F::Addr>,
    session_affinity: SessionAffinity,
    member: u32,
) -> Option<u32> {
    // SAFETY: every field that is used is compared below with what it must be;
    // an entry that another client takes over meanwhile leads to a backend of
    // this very Service port or to none.
    let affinity = unsafe { F::affinities().get(key) }?;
    let wanted = if member == 0 {
        Backend::<F::Addr>::CLUSTER
    } else {
        Backend::<F::Addr>::LOCAL
    };
    row::<F>(affinity, session_affinity, key.service, wanted)
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

//! Session affinity of frontends at this host's own addresses, those of the
//! loopback included: the only ones with affinity that are served here. The
//! packets of its processes to them leave by no device that has programs.

use proxy_common::{
    affinity::{Affinity, AffinityKey},
    backend::Backend,
    net::Address,
    service::SessionAffinity,
};

use crate::{
    clock::now,
    lookup::affinity,
    maps::tables::{self, Tables},
};

/// The client that is remembered, and for how long.
pub struct Remembered<A> {
    pub client: A,
    /// Row of `SERVICES`.
    pub service: u32,
    pub session_affinity: SessionAffinity,
}

impl<A: Address> Remembered<A> {
    /// Host processes use the cluster set (S39).
    #[inline(always)]
    fn key(&self) -> AffinityKey<A> {
        AffinityKey {
            client: self.client,
            service: self.service,
            set: 0,
        }
    }
}

/// The row of the backend that the client had last.
#[inline(always)]
pub fn recall<F: Tables>(remembered: &Remembered<F::Addr>) -> Option<u32> {
    let session_affinity = remembered.session_affinity;
    if session_affinity.seconds == 0 {
        return None;
    }
    // SAFETY: every field that is used is compared with what it must be.
    let entry = unsafe { F::affinities().get(remembered.key()) }?;
    let wanted = Backend::<F::Addr>::CLUSTER;
    affinity::row::<F>(entry, session_affinity, remembered.service, wanted)
}

/// Notes the backend that the client has now.
#[inline(always)]
pub fn remember<F: Tables>(
    remembered: &Remembered<F::Addr>,
    backend: u32,
    generation: u32,
    epoch: u8,
) {
    let SessionAffinity { seconds, round } = remembered.session_affinity;
    if seconds == 0 {
        return;
    }
    let affinity = Affinity {
        backend,
        generation,
        round,
        last_used: now(),
        epoch,
        zero: [0; 3],
    };
    // A table without room forgets the client that came longest ago.
    let _ = F::affinities().insert(remembered.key(), affinity, tables::BPF_ANY);
}

//! The prefilter: bits that save look-ups.

use proxy_common::{
    net::{BePort, Protocol},
    prefilter,
};

use crate::{maps::tables::Tables, packet::barrier::masked};

/// Returns whether `addr` may be a frontend's.
#[inline(always)]
pub fn may_be_frontend<F: Tables>(addr: &F::Addr) -> bool {
    bit::<F>(prefilter::FRONTENDS, prefilter::frontend_bit(addr))
}

/// Returns whether this may be a backend.
#[inline(always)]
pub fn may_be_backend<F: Tables>(addr: &F::Addr, port: BePort, protocol: Protocol) -> bool {
    bit::<F>(
        prefilter::BACKENDS,
        prefilter::backend_bit(addr, port, protocol),
    )
}

/// Returns whether `addr` may be one that replies to masqueraded flows come to.
#[inline(always)]
pub fn may_be_masquerade<F: Tables>(addr: &F::Addr) -> bool {
    bit::<F>(prefilter::MASQUERADES, prefilter::frontend_bit(addr))
}

/// Returns whether this may be a NodePort: it is one of some Service.
#[inline(always)]
pub fn may_be_node_port<F: Tables>(port: BePort, protocol: Protocol) -> bool {
    bit::<F>(
        prefilter::NODE_PORTS,
        prefilter::node_port_bit(port, protocol),
    )
}

/// The same questions for the slow path, as functions of their own: they need
/// much of its stack.
pub mod slow {
    use super::{BePort, Protocol, Tables};

    #[inline(never)]
    pub fn may_be_frontend<F: Tables>(addr: &F::Addr) -> bool {
        super::may_be_frontend::<F>(addr)
    }

    #[inline(never)]
    pub fn may_be_backend<F: Tables>(addr: &F::Addr, port: BePort, protocol: Protocol) -> bool {
        super::may_be_backend::<F>(addr, port, protocol)
    }

    #[inline(never)]
    pub fn may_be_masquerade<F: Tables>(addr: &F::Addr) -> bool {
        super::may_be_masquerade::<F>(addr)
    }
}

/// Notes that replies to masqueraded flows come to `addr`.
///
/// Two CPUs that set bits of one word at the same moment may lose one; every
/// packet that is masqueraded sets its bit again if it is missing.
#[inline(never)]
pub fn note_masquerade<F: Tables>(addr: &F::Addr) {
    let bit = prefilter::frontend_bit(addr);
    let Some(filter) = F::filters().get_ptr_mut(prefilter::MASQUERADES) else {
        return;
    };
    let index = masked::<{ prefilter::WORDS as u32 - 1 }>(bit / 64);
    // SAFETY: the value lives as long as the program; the index is masked to
    // the array. Racing stores are described above.
    unsafe {
        let word = filter.cast::<u64>().add(index);
        let mask = 1_u64 << (bit % 64);
        if word.read_volatile() & mask == 0 {
            word.write_volatile(word.read_volatile() | mask);
        }
    }
}

#[inline(always)]
fn bit<F: Tables>(filter: u32, bit: u32) -> bool {
    let Some(filter) = F::filters().get_ptr(filter) else {
        return false;
    };
    let index = masked::<{ prefilter::WORDS as u32 - 1 }>(bit / 64);
    // SAFETY: the value lives as long as the program; the index is masked to
    // the array.
    let word = unsafe { filter.cast::<u64>().add(index).read_volatile() };
    word >> (bit % 64) & 1 != 0
}

//! Partial sums of what is about to be written into a packet.

use aya_ebpf::helpers::generated::bpf_csum_diff;
use proxy_common::{
    checksum,
    net::{Address, Protocol},
};

use super::verdict::Fault;

/// Partial sum of a value's bytes, a multiple of four of them.
#[inline(always)]
pub fn sum<T>(value: &T, seed: u32) -> Result<u32, Fault> {
    sum_of(value, size_of::<T>() as u32, seed)
}

/// Partial sum of a value's first bytes, a multiple of four of them.
#[inline(always)]
pub fn sum_of<T>(value: &T, length: u32, seed: u32) -> Result<u32, Fault> {
    let bytes = core::ptr::from_ref(value).cast_mut().cast();
    // SAFETY: the helper reads `length` bytes of `value`, a type without padding; the
    // verifier checks that it has as many.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes, length, seed) };
    u32::try_from(sum).map_err(|_| Fault)
}

/// Partial sum of the pseudo header.
#[inline(always)]
pub fn pseudo_header<A: Address>(src: &A, dst: &A, protocol: Protocol, length: u32) -> u32 {
    let mut sum = checksum::add(length.to_be(), u32::from(protocol.0).to_be());
    let mut index = 0;
    while index < A::WORDS {
        sum = checksum::add(sum, checksum::add(src.word(index), dst.word(index)));
        index += 1;
    }
    sum
}

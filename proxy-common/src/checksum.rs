//! Internet checksum arithmetic (RFC 1071, RFC 1624).

use crate::net::Address;

/// Adds two 32-bit one's-complement partial sums.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    #[expect(clippy::cast_possible_truncation, reason = "the carry is added back")]
    let folded = (sum as u32).wrapping_add((sum >> 32) as u32);
    folded
}

/// Folds a partial sum to 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    #[expect(clippy::cast_possible_truncation, reason = "the carry is added back")]
    let folded = (sum + (sum >> 16)) as u16;
    folded
}

/// Partial sum of replacing one address by another: add it to the sum of the
/// bytes that hold the address (which is the complement of their checksum).
#[inline(always)]
pub fn difference<A: Address>(old: &A, new: &A) -> u32 {
    let mut sum = 0;
    let mut index = 0;
    while index < A::WORDS {
        sum = add(sum, add(!old.word(index), new.word(index)));
        index += 1;
    }
    sum
}

/// The checksum field after its bytes changed by `difference` (RFC 1624).
#[inline(always)]
pub const fn update(checksum: u16, difference: u32) -> u16 {
    !fold(add(!checksum as u32 & 0xffff, difference))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::{AddrV4, AddrV6};

    /// The checksum computed from all bytes, the slow and obvious way.
    fn whole(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_ne_bytes([pair[0], pair[1]]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !fold(sum)
    }

    /// Both zeros of one's-complement arithmetic mean the same.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    proptest! {
        #[test]
        fn incremental_equals_whole(
            rest in prop::array::uniform16(any::<u8>()),
            old4: [u8; 4], new4: [u8; 4], old6: [u8; 16], new6: [u8; 16],
        ) {
            let with = |addr: &[u8]| [&rest[..], addr].concat();
            let v4 = difference(&AddrV4 { octets: old4 }, &AddrV4 { octets: new4 });
            let v6 = difference(&AddrV6 { octets: old6 }, &AddrV6 { octets: new6 });
            prop_assert!(same(update(whole(&with(&old4)), v4), whole(&with(&new4))));
            prop_assert!(same(update(whole(&with(&old6)), v6), whole(&with(&new6))));
        }
    }
}

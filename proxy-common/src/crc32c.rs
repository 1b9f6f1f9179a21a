//! SCTP's checksum, brought up to date after a change of a few bytes.
//!
//! SCTP has no pseudo header, so changed addresses leave its CRC-32C as it is.
//! Changed ports do not, and to compute it anew one would have to walk all of
//! the packet. But a CRC is linear: the CRC of a changed packet is that of the
//! packet, xor that of the change (without the inversions before and after,
//! which cancel out). The change is one word followed by zeros, and a CRC goes
//! over many zeros in as many steps as their number has bits.
//!
//! In polynomials over GF(2), modulo the Castagnoli polynomial: a register that
//! goes over `n` zero bytes is multiplied by x^8n. As usual for this CRC bits
//! are reflected: the highest bit of a word is the coefficient of x^0.

/// The Castagnoli polynomial without its highest term, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Bits of a length: IP packets are shorter than 2^16 bytes.
const LENGTH_BITS: usize = 16;

/// x^8, x^16, x^32 … : what a register is multiplied by to go over 1, 2, 4 …
/// zero bytes.
const POWERS: [u32; LENGTH_BITS] = {
    let mut powers = [1 << (31 - 8); LENGTH_BITS];
    let mut index = 1;
    while index < LENGTH_BITS {
        powers[index] = multiply(powers[index - 1], powers[index - 1]);
        index += 1;
    }
    powers
};

/// Values of a hexadecimal digit.
const DIGITS: usize = 16;

/// Products with each of the powers, of each digit of a word in each of its
/// places: a product is the sum of those of its digits. Were products computed,
/// the verifier would follow 512 rounds wherever a port changes.
static PRODUCTS: [[[u32; DIGITS]; 8]; LENGTH_BITS] = {
    let mut products = [[[0; DIGITS]; 8]; LENGTH_BITS];
    let mut index = 0;
    while index < LENGTH_BITS {
        let mut digit = 0;
        while digit < 8 {
            let mut value = 0_u32;
            while (value as usize) < DIGITS {
                products[index][digit][value as usize] =
                    multiply(value << (4 * digit), POWERS[index]);
                value += 1;
            }
            digit += 1;
        }
        index += 1;
    }
    products
};

/// The checksum of an SCTP packet of `length` bytes whose ports changed.
///
/// `checksum`, `old` and `new` are the four bytes of the packet that hold the
/// checksum, and both ports before and after, read in little-endian order
/// (RFC 9260 appendix A).
#[inline(always)]
pub fn update(checksum: u32, old: u32, new: u32, length: u16) -> u32 {
    checksum ^ over_zeros(old ^ new, length)
}

/// A register after it went over `count` zero bytes.
#[inline(always)]
fn over_zeros(mut register: u32, count: u16) -> u32 {
    for (index, product) in PRODUCTS.iter().enumerate() {
        if (count >> index) & 1 != 0 {
            register = product
                .iter()
                .enumerate()
                .fold(0, |sum, (digit, products)| {
                    sum ^ products[(register >> (4 * digit)) as usize % DIGITS]
                });
        }
    }
    register
}

/// Product of two polynomials.
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        product ^= b & ((a << bit) >> 31).wrapping_neg();
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        bit += 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The checksum computed from all bytes, the slow and obvious way.
    fn whole(bytes: &[u8]) -> u32 {
        let mut register = u32::MAX;
        for byte in bytes {
            register ^= u32::from(*byte);
            for _ in 0..8 {
                let carry = register & 1;
                register >>= 1;
                if carry != 0 {
                    register ^= POLYNOMIAL;
                }
            }
        }
        !register
    }

    #[test]
    fn the_slow_way_is_crc32c() {
        // The check value of the catalogue of CRCs, and RFC 3720 B.4.
        assert_eq!(whole(b"123456789"), 0xe306_9283);
        assert_eq!(whole(&[0; 32]), 0x8a91_36aa);
        assert_eq!(whole(&[0xff; 32]), 0x62a8_ab43);
    }

    fn assert_updated(packet: &[u8], ports: [u8; 4]) {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().expect("four"));
        let changed = [&ports[..], &packet[4..]].concat();
        let length = u16::try_from(packet.len()).expect("a packet's length");
        assert_eq!(
            update(whole(packet), word(packet), word(&ports), length),
            whole(&changed),
            "{length} bytes"
        );
    }

    proptest! {
        #[test]
        fn updated_equals_whole(
            packet in prop::collection::vec(any::<u8>(), 12..2000),
            ports: [u8; 4],
        ) {
            assert_updated(&packet, ports);
        }
    }

    #[test]
    fn every_bit_of_the_length_counts() {
        for bit in 4..16 {
            for length in [(1 << bit) - 1, 1 << bit, (1 << bit) + 1] {
                assert_updated(&vec![0x5a; length], [1, 2, 3, 4]);
            }
        }
        assert_updated(&vec![0xa5; 0xffff], [0x1f, 0x90, 0, 80]);
    }

    #[test]
    fn no_change_changes_nothing() {
        assert_eq!(update(0x1234_5678, 99, 99, 1500), 0x1234_5678);
    }
}

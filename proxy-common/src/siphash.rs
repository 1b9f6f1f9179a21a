//! SipHash-1-3 over 64-bit words (Aumasson and Bernstein, 2012): a keyed hash
//! small enough for a BPF program.

/// The running state of one hash.
#[derive(Clone, Copy)]
pub struct SipHash13 {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
    /// Bytes so far.
    length: u64,
}

impl SipHash13 {
    #[inline(always)]
    pub const fn new(key: [u64; 2]) -> Self {
        Self {
            v0: key[0] ^ 0x736f_6d65_7073_6575,
            v1: key[1] ^ 0x646f_7261_6e64_6f6d,
            v2: key[0] ^ 0x6c79_6765_6e65_7261,
            v3: key[1] ^ 0x7465_6462_7974_6573,
            length: 0,
        }
    }

    /// Takes the next eight bytes, as a little-endian number.
    #[inline(always)]
    pub const fn word(&mut self, word: u64) {
        self.length += 8;
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }

    /// The hash of all words so far.
    #[inline(always)]
    pub const fn finish(mut self) -> u64 {
        let last = self.length << 56;
        self.v3 ^= last;
        self.round();
        self.v0 ^= last;
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }

    #[inline(always)]
    const fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use super::*;

    /// The standard library's default hasher is SipHash-1-3 with a zero key.
    #[test]
    fn agrees_with_the_standard_library() {
        for words in 0..6_u64 {
            let mut ours = SipHash13::new([0, 0]);
            let mut theirs = std::collections::hash_map::DefaultHasher::new();
            for word in 0..words {
                let word = word.wrapping_mul(0x0123_4567_89ab_cdef) ^ 0xa5;
                ours.word(word);
                theirs.write(&word.to_le_bytes());
            }
            assert_eq!(ours.finish(), theirs.finish(), "{words} words");
        }
    }
}

//! Large transfers. The bytes follow a pattern that both sides know, so the
//! receiver compares every byte and can name the first wrong one.

use std::{
    io::{self, Read, Write},
    sync::LazyLock,
};

/// A prime, so that no power-of-two shift of the stream looks right.
const PERIOD: usize = 1_048_573;
/// Bytes written or read at once.
const CHUNK: usize = 256 * 1024;

/// One period of the pattern, with a chunk more so that any chunk is a slice.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut period: Vec<u8> = Vec::with_capacity(PERIOD + CHUNK);
    while period.len() < PERIOD {
        // Xorshift: no two windows alike, and the same in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        period.extend_from_slice(&state.to_le_bytes());
    }
    period.truncate(PERIOD);
    period.extend_from_within(..CHUNK);
    period
});

fn expected(offset: usize, length: usize) -> &'static [u8] {
    let start = offset % PERIOD;
    &PATTERN[start..start + length]
}

/// Writes `length` bytes of the pattern.
pub(super) fn send(stream: &mut impl Write, length: usize) -> io::Result<()> {
    let mut sent = 0;
    while sent < length {
        let chunk = CHUNK.min(length - sent);
        stream.write_all(expected(sent, chunk))?;
        sent += chunk;
    }
    stream.flush()
}

/// Reads `length` bytes and compares each with the pattern.
pub(super) fn receive(stream: &mut impl Read, length: usize) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    while received < length {
        let limit = CHUNK.min(length - received);
        let count = stream.read(&mut buffer[..limit])?;
        if count == 0 {
            return Err(io::Error::other(format!(
                "stream ends at byte {received} of {length}"
            )));
        }
        let (actual, wanted) = (&buffer[..count], expected(received, count));
        if actual != wanted {
            let same = actual
                .iter()
                .zip(wanted)
                .take_while(|(a, b)| a == b)
                .count();
            return Err(io::Error::other(format!(
                "byte {} is wrong",
                received + same
            )));
        }
        received += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_recognised_and_a_changed_byte_named() {
        let length = 3 * PERIOD + 17;
        let mut stream = Vec::new();
        send(&mut stream, length).unwrap();
        receive(&mut stream.as_slice(), length).unwrap();

        stream[2_000_000] ^= 1;
        let error = receive(&mut stream.as_slice(), length).unwrap_err();
        assert_eq!(error.to_string(), "byte 2000000 is wrong");
    }

    #[test]
    fn a_lost_byte_is_noticed() {
        let mut stream = Vec::new();
        send(&mut stream, PERIOD).unwrap();
        stream.remove(100);
        assert!(receive(&mut stream.as_slice(), PERIOD - 1).is_err());
    }
}

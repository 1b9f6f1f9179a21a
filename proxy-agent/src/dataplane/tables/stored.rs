//! Conversions between the values in tables and the agent's own types.

use aya::maps::lpm_trie::Key;
use proxy_common::{
    net::Protocol,
    service::{NAME_LEN, ServiceName, SessionAffinity, SlotRange},
};

use super::KernelFamily;
use crate::{
    model::{ObjectKey, ServicePortName},
    plan::write::RangeKey,
};

/// A range as the word that is stored.
pub(super) fn range_bits(range: SlotRange) -> u64 {
    word(range.first, range.count)
}

/// Session affinity as the word that is stored.
pub(super) fn session_affinity_bits(session_affinity: SessionAffinity) -> u64 {
    word(session_affinity.seconds, session_affinity.round)
}

/// Two halves as they lie in memory.
fn word(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

pub(super) fn read_range<F: KernelFamily>(key: &Key<F::SourceRange>) -> RangeKey<F::Addr> {
    RangeKey {
        range: key.data().into(),
        bits: key.prefix_len(),
    }
}

pub(super) fn write_range<F: KernelFamily>(key: &RangeKey<F::Addr>) -> Key<F::SourceRange> {
    Key::new(key.bits, key.range.into())
}

pub(super) fn read_name(name: &ServiceName) -> ServicePortName {
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    ServicePortName {
        service: ObjectKey::new(text(&name.namespace), text(&name.name)),
        port: text(&name.port).into(),
        protocol: Protocol(u8::try_from(name.protocol).unwrap_or(0)),
    }
}

pub(super) fn write_name(name: &ServicePortName) -> ServiceName {
    let bytes = |text: &str| {
        let mut bytes = [0; NAME_LEN + 1];
        let length = text.len().min(NAME_LEN);
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        bytes
    };
    ServiceName {
        namespace: bytes(name.service.namespace()),
        name: bytes(name.service.name()),
        port: bytes(&name.port),
        protocol: name.protocol.0.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_map() {
        let name = ServicePortName {
            service: ObjectKey::new("n".repeat(63), "1-starts-with-a-digit"),
            port: "".into(),
            protocol: Protocol::UDP,
        };
        assert_eq!(read_name(&write_name(&name)), name);
    }

    #[test]
    fn words_are_stored_as_the_programs_read_them() {
        let range = SlotRange { first: 7, count: 3 };
        // SAFETY: eight plain bytes of the same layout.
        let read: SlotRange = unsafe { std::mem::transmute(range_bits(range)) };
        assert_eq!(read, range);
        let session_affinity = SessionAffinity {
            seconds: 10_800,
            round: 2,
        };
        // SAFETY: eight plain bytes of the same layout.
        let read: SessionAffinity =
            unsafe { std::mem::transmute(session_affinity_bits(session_affinity)) };
        assert_eq!(read, session_affinity);
    }
}

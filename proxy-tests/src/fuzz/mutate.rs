//! Changes to packets: some that senders make, and some that nobody should.

use fastrand::Rng;

use crate::{
    Family,
    packet::{Extension, Packet},
};

/// The kernel runs no frame without a whole IP header.
const SHORTEST_V4: usize = 20;
const SHORTEST_V6: usize = 40;
const ETHERNET: usize = 14;

/// The same packet with headers and fields that are seldom there. It stays valid.
pub(super) fn decorated(rng: &mut Rng, packet: Packet) -> Packet {
    let mut packet = packet;
    if rng.u8(..4) == 0 {
        packet.tags = match rng.u8(..3) {
            0 => vec![0x88a8, 0x8100],
            _ => vec![0x8100],
        };
    }
    match packet.family() {
        // NOPs.
        Family::V4 if rng.u8(..4) == 0 => packet.options = vec![1; 4 * rng.usize(1..=10)],
        Family::V6 if rng.u8(..4) == 0 => {
            packet.extensions = (0..rng.usize(1..=4)).map(|_| extension(rng)).collect();
        }
        _ => {}
    }
    if rng.u8(..8) == 0 {
        packet.padding = rng.usize(1..40);
    }
    if rng.u8(..8) == 0 {
        packet.ttl = rng.u8(..);
        packet.tos = rng.u8(..);
    }
    packet
}

fn extension(rng: &mut Rng) -> Extension {
    match rng.u8(..4) {
        0 => Extension::HopByHop,
        1 => Extension::Routing,
        2 => Extension::Options(8 * rng.usize(1..=4)),
        _ => Extension::Destination,
    }
}

/// Breaks something in the bytes of a packet.
pub(super) fn damage(rng: &mut Rng, bytes: &mut Vec<u8>, layer3: bool) {
    let l3 = if layer3 { 0 } else { ETHERNET };
    match rng.u8(..6) {
        0 => {
            let is_v6 = bytes.get(l3).is_some_and(|byte| byte >> 4 == 6);
            let shortest = l3 + if is_v6 { SHORTEST_V6 } else { SHORTEST_V4 };
            let length = bytes.len();
            if length > shortest {
                bytes.truncate(rng.usize(shortest..length));
            }
        }
        1 => bytes.extend((0..rng.usize(1..30)).map(|_| 0xa5)),
        2 => {
            // What the transport header says of itself, most often.
            let at = rng.usize(l3..bytes.len().min(l3 + 100));
            bytes[at] = rng.u8(..);
        }
        3 => {
            let at = rng.usize(l3..bytes.len().min(l3 + 100));
            bytes[at] ^= 1 << rng.u8(..8);
        }
        4 => {
            let at = bytes.len() - 1;
            bytes[at] ^= 0xff;
        }
        _ => fragment(rng, bytes, l3),
    }
}

/// Makes an IPv4 packet a fragment, of any part, with a right header checksum.
fn fragment(rng: &mut Rng, bytes: &mut [u8], l3: usize) {
    let Some(header) = bytes.get_mut(l3..l3 + 20) else {
        return;
    };
    if header[0] != 0x45 {
        return;
    }
    let field = [0x2000, 0x2003, 0x0003, 0x0001][rng.usize(..4)];
    header[6..8].copy_from_slice(&u16::to_be_bytes(field));
    header[10..12].fill(0);
    let sum = !super::frame::sum(&[header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

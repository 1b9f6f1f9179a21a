//! The checks that every single run must pass, whatever the packet was.

use anyhow::{Error, Result, bail, ensure};
use proxy_common::counter::Counter;

use super::{
    frame::{Frame, SCTP},
    world,
};
use crate::packet::{Hook, Ran, Verdict, check};

/// Counters that say what was done with a packet that may go on.
const NO_REASONS: [Counter; 6] = [
    Counter::FlowCreated,
    Counter::FlowReselected,
    Counter::IcmpErrorTranslated,
    Counter::EchoAnswered,
    Counter::TupleClash,
    Counter::MasqueradeTakenOver,
];
const MAC_LEN: usize = 6;
/// Hop limit of packets that the datapath makes.
const TTL: u8 = 64;

/// Returns whether the packets of a hook have no Ethernet header.
pub(super) fn is_layer3(hook: Hook) -> bool {
    matches!(hook, Hook::IngressLayer3 | Hook::EgressLayer3)
}

/// Says what is wrong with what a hook has made of a packet.
pub(super) fn run(hook: Hook, packet: &[u8], ran: &Ran) -> Result<()> {
    let layer3 = is_layer3(hook);
    let before = Frame::of(packet, layer3);
    let Some(before) = before.filter(|before| !is_nobodys(before)) else {
        ensure!(
            ran.verdict == Verdict::Next && ran.packet == packet && ran.counted.is_empty(),
            "the packet is not ours"
        );
        return Ok(());
    };
    match ran.verdict {
        Verdict::Unexpected(verdict) => bail!("verdict {verdict}"),
        Verdict::Drop => dropped(hook, &before, ran),
        Verdict::Next => translated(&before, packet, ran, layer3, false),
        Verdict::Redirect => match Frame::of(&ran.packet, layer3) {
            // One to itself would be found to differ in more than a translation may.
            Some(after)
                if (after.src(), after.dst()) == (before.dst(), before.src())
                    && before.src() != before.dst() =>
            {
                answered(&before, packet, &after, &ran.packet, layer3)
            }
            _ => translated(&before, packet, ran, layer3, true),
        },
    }
}

/// Returns whether no table can know any of the packet's addresses, nor those of a
/// packet that it quotes.
fn is_nobodys(frame: &Frame<'_>) -> bool {
    let ours = |frame: &Frame<'_>| [frame.src(), frame.dst()].map(world::may_be_ours);
    !ours(frame).contains(&true)
        && !frame.is_redirect_v6()
        && frame
            .quote()
            .is_none_or(|quote| !ours(&quote).contains(&true))
}

/// A packet that is dropped is counted, but for a reset of a connection that is
/// gone, and for the rest of a datagram of the host's that was answered.
fn dropped(hook: Hook, before: &Frame<'_>, ran: &Ran) -> Result<()> {
    let is_reason = |label: &str| NO_REASONS.iter().all(|counter| counter.label() != label);
    ensure!(
        ran.counted.keys().any(|label| is_reason(label))
            || before.is_reset()
            || before.later && hook == Hook::HostEgress,
        "dropped without a reason"
    );
    Ok(())
}

/// A packet that goes on differs in addresses, ports and checksums alone, and
/// each checksum is as right or wrong as it was.
fn translated(
    before: &Frame<'_>,
    packet: &[u8],
    ran: &Ran,
    layer3: bool,
    redirected: bool,
) -> Result<()> {
    if packet == ran.packet {
        return Ok(());
    }
    ensure!(packet.len() == ran.packet.len(), "another length");
    let mut places = before.may_change();
    if redirected && !layer3 {
        places.push(0..MAC_LEN);
    }
    for (at, (old, new)) in packet.iter().zip(&ran.packet).enumerate() {
        let may_change = old == new || places.iter().any(|place| place.contains(&at));
        ensure!(may_change, "byte {at} has changed");
    }
    let Some(after) = Frame::of(&ran.packet, layer3) else {
        bail!("what goes on is no packet any more");
    };
    residues_are_kept(before, &after)?;
    // An SCTP checksum that is quoted is left as it is: who gets a part of a packet
    // cannot check it.
    match (before.quote(), after.quote()) {
        (Some(before), Some(after)) if before.protocol != SCTP => {
            residues_are_kept(&before, &after)?;
        }
        _ => {}
    }
    Ok(())
}

fn residues_are_kept(before: &Frame<'_>, after: &Frame<'_>) -> Result<()> {
    for ((what, old), (_, new)) in before.residues().into_iter().zip(after.residues()) {
        ensure!(
            old == new,
            "{what} checksum: {old:04x?} before, {new:04x?} after"
        );
    }
    Ok(())
}

/// An answer goes to one host that may have one, and is well-formed.
fn answered(
    before: &Frame<'_>,
    packet: &[u8],
    after: &Frame<'_>,
    answer: &[u8],
    layer3: bool,
) -> Result<()> {
    ensure!(
        world::is_single_host(before.src()),
        "an answer to {}, which is no single host",
        before.src()
    );
    ensure!(
        layer3 || packet[MAC_LEN] & 1 == 0,
        "an answer to many stations"
    );
    ensure!(!before.is_reset(), "an answer to a reset");
    ensure!(!before.is_unaskable(), "an answer to an ICMP message");
    ensure!(
        after.ttl() == TTL,
        "an answer with hop limit {}",
        after.ttl()
    );
    if before.is_icmp() && (before.later || after.is_echo_reply()) {
        // What follows the header comes back as it was, right or wrong.
        return residues_are_kept(before, after);
    }
    ensure!(
        !before.later,
        "an answer to a later fragment, which no answer may be about"
    );
    let checked = if layer3 {
        check::packet(answer)
    } else {
        check::frame(answer)
    };
    checked.map_err(Error::msg)
}

//! Two datapaths that meet the same packets, and must do the same.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use proxy_common::counter::Counter;

use super::{
    check, exchange,
    frame::{Frame, Hex},
    step::{Step, Twin, What},
    world::{self, Endpoints},
};
use crate::{
    Family,
    packet::{Cast, Datapath, FlowRecord, Hook, Ran, Verdict},
};

/// A VLAN tag, with which a frame goes the slow path.
const TAG: [u8; 4] = [0x81, 0, 0, 7];
const TAG_AT: usize = 12;

/// The two datapaths.
pub(super) struct Player {
    first: Side,
    second: Side,
    twin: Twin,
    endpoints: Endpoints,
    /// Runs of packets through hooks of the first one.
    pub(super) packets: u64,
    /// Questions that were led to a backend.
    pub(super) answered: u64,
}

struct Side {
    datapath: Datapath,
    counters: BTreeMap<&'static str, u64>,
}

impl Player {
    /// Loads both.
    pub(super) fn new() -> Self {
        let mut second = Side::new();
        second.datapath.load_program("through");
        Self {
            first: Side::new(),
            second,
            twin: Twin {
                slow: true,
                hints: false,
            },
            endpoints: Endpoints::All,
            packets: 0,
            answered: 0,
        }
    }

    /// Forgets all flows, for a sequence that begins.
    pub(super) fn begin(&mut self, twin: Twin) {
        self.twin = twin;
        self.serve(Endpoints::All);
        self.first.datapath.forget_flows();
        self.second.datapath.forget_flows();
    }

    fn serve(&mut self, endpoints: Endpoints) {
        if self.endpoints != endpoints {
            world::serve(&mut self.first.datapath, endpoints);
            world::serve(&mut self.second.datapath, endpoints);
            self.endpoints = endpoints;
        }
    }

    /// Checks that both have the same flows.
    pub(super) fn end(&self) -> Result<()> {
        for family in Family::BOTH {
            let [first, second] =
                [&self.first, &self.second].map(|side| sorted(&side.datapath, family));
            ensure!(
                first == second,
                "other flows on the other way:\n{first:#?}\n{second:#?}"
            );
        }
        Ok(())
    }

    /// The flows of a family, for packets that follow them.
    pub(super) fn flows(&self, family: Family) -> Vec<FlowRecord> {
        sorted(&self.first.datapath, family)
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<()> {
        match step.what {
            What::Meets(Hook::Through) => self.through(&step.packet).map(drop),
            What::Meets(hook) => self.meet(hook, &step.packet).map(drop),
            What::Asks => exchange::ask(self, &step.packet, false),
            What::HostAsks => exchange::ask(self, &step.packet, true),
            What::AsksInPieces => exchange::ask_in_pieces(self, &step.packet),
            What::Changes => {
                let number = step.packet.first().copied().unwrap_or(0);
                self.serve(Endpoints::numbered(number));
                Ok(())
            }
        }
    }

    /// A packet meets one hook of both.
    pub(super) fn meet(&mut self, hook: Hook, packet: &[u8]) -> Result<Ran> {
        if is_shown_once(hook, packet) {
            return Ok(untouched(packet));
        }
        let first = self.checked(hook, packet)?;
        let second = self.second(hook, packet);
        compare(hook, packet, &first, &second)?;
        Ok(first)
    }

    /// A forwarded packet meets both hooks of both; with its hint, if the second one
    /// has those.
    pub(super) fn through(&mut self, packet: &[u8]) -> Result<Ran> {
        let entered = self.checked(Hook::Ingress, packet)?;
        let goes_on = entered.verdict == Verdict::Next && !is_for_node(&entered.packet);
        if !goes_on || !self.twin.hints || self.needs_hint(packet, &entered.packet) {
            let second = self.second(Hook::Ingress, packet);
            compare(Hook::Ingress, packet, &entered, &second)?;
            return if goes_on {
                self.meet(Hook::Egress, &entered.packet)
            } else {
                Ok(entered)
            };
        }
        let mut ran = self.checked(Hook::Egress, &entered.packet)?;
        for (label, count) in entered.counted {
            *ran.counted.entry(label).or_default() += count;
        }
        let second = self.second(Hook::Through, packet);
        compare(Hook::Through, packet, &ran, &second)?;
        Ok(ran)
    }

    /// Returns whether the hint alone tells egress what a packet is: a question between
    /// two peers looks like an answer, a client's packet straight to a backend like one
    /// that was led there, and one that came in from a NodePort of this node's like one
    /// of its own connections.
    fn needs_hint(&self, packet: &[u8], entered: &[u8]) -> bool {
        let Some(frame) = Frame::of(entered, false) else {
            return false;
        };
        let ends = frame.ends();
        is_shown_once(Hook::Egress, entered)
            || ends.0.port() == world::NODE_PORT
            || self.flows(frame.family).into_iter().any(|flow| {
                (flow.backend, flow.client) == ends
                    || (flow.between, flow.backend) == ends && packet == entered
            })
    }

    /// A packet meets a hook of the first datapath.
    fn checked(&mut self, hook: Hook, packet: &[u8]) -> Result<Ran> {
        let ran = self.first.run(hook, packet);
        self.packets += 1;
        check::run(hook, packet, &ran).with_context(|| describe(hook, packet, &ran))?;
        Ok(ran)
    }

    /// A packet meets a hook of the second one.
    fn second(&mut self, hook: Hook, packet: &[u8]) -> Ran {
        let layer3 = check::is_layer3(hook);
        // What the host throws away is left alone by the slow path only.
        let damaged = Frame::of(packet, layer3).is_some_and(|frame| frame.is_damaged());
        let (front, rest) = packet.split_at(packet.len().min(TAG_AT));
        let tagged = matches!(rest, [0x81, 0, ..] | [0x88, 0xa8, ..]);
        if !self.twin.slow || layer3 || damaged || tagged {
            return self.second.run(hook, packet);
        }
        let mut ran = self.second.run(hook, &[front, &TAG, rest].concat());
        ran.packet.drain(TAG_AT..TAG_AT + TAG.len());
        ran
    }
}

impl Side {
    fn new() -> Self {
        // Both sides have the same bits in their filters.
        let mut datapath = Datapath::with_sizes(Datapath::SIZES);
        world::set_up(&mut datapath);
        let counters = datapath.counters();
        Self { datapath, counters }
    }

    /// As [`Datapath::run_bytes`], with half the look-ups.
    fn run(&mut self, hook: Hook, packet: &[u8]) -> Ran {
        let (verdict, packet) = self.datapath.run_uncounted(hook, packet);
        let before = std::mem::replace(&mut self.counters, self.datapath.counters());
        let counted = self
            .counters
            .iter()
            .map(|(label, count)| (*label, count - before.get(label).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        Ran {
            verdict,
            packet,
            counted,
        }
    }
}

fn sorted(datapath: &Datapath, family: Family) -> Vec<FlowRecord> {
    let mut flows = datapath.flows(family);
    flows.sort_by_key(|flow| (flow.client, flow.protocol, flow.index));
    flows
}

/// Of connections that leave from a NodePort the fast path shows the first packet
/// only, so that the two know different things of the others.
fn is_shown_once(hook: Hook, packet: &[u8]) -> bool {
    let egress = !matches!(hook, Hook::Ingress | Hook::IngressLayer3);
    egress
        && Frame::of(packet, check::is_layer3(hook))
            .is_some_and(|frame| frame.ports().0 == world::NODE_PORT && !frame.is_opener())
}

/// Returns whether the packet ends at the node, and leaves by no device.
fn is_for_node(packet: &[u8]) -> bool {
    Frame::of(packet, false).is_some_and(|frame| frame.dst() == Cast::of(frame.family).node())
}

fn untouched(packet: &[u8]) -> Ran {
    Ran {
        verdict: Verdict::Next,
        packet: packet.to_vec(),
        counted: BTreeMap::new(),
    }
}

/// Both have done the same. Answers are limited by time, which is not the same.
fn compare(hook: Hook, packet: &[u8], first: &Ran, second: &Ran) -> Result<()> {
    let limited = Counter::RefusalLimited.label();
    if [first, second]
        .iter()
        .any(|ran| ran.counted.contains_key(limited))
    {
        return Ok(());
    }
    ensure!(
        first == second,
        "the other way decides differently\n{}\nother way: {:?} {:?} {}",
        describe(hook, packet, first),
        second.verdict,
        second.counted,
        Hex(&second.packet),
    );
    Ok(())
}

fn describe(hook: Hook, packet: &[u8], ran: &Ran) -> String {
    let text = |bytes| match Frame::of(bytes, check::is_layer3(hook)) {
        Some(frame) => format!("{frame} {}", Hex(bytes)),
        None => Hex(bytes).to_string(),
    };
    format!(
        "{hook:?}\n   in: {}\n  out: {}\n       {:?} {:?}",
        text(packet),
        text(&ran.packet),
        ran.verdict,
        ran.counted,
    )
}

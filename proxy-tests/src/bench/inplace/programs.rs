//! Running times of programs in the kernel.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::MapInfo,
    programs::{LinkOrder, ProgramInfo, TcAttachType, loaded_programs, tc::TcAttachOptions},
};
use proxy_agent::dataplane::pins::Pins;

use crate::{Node, packet::Datapath};

/// The time that so many runs took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Time {
    pub(super) ns: u64,
    pub(super) runs: u64,
}

impl Time {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            ns: self.ns.saturating_sub(before.ns),
            runs: self.runs.saturating_sub(before.runs),
        }
    }

    /// Nanoseconds of a run.
    #[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
    pub(super) fn average(self) -> f64 {
        self.ns as f64 / self.runs.max(1) as f64
    }

    fn of(program: &ProgramInfo) -> Self {
        Self {
            ns: u64::try_from(program.run_time().as_nanos()).unwrap_or(u64::MAX),
            runs: program.run_count(),
        }
    }

    fn add(&mut self, more: Self) {
        self.ns += more.ns;
        self.runs += more.runs;
    }
}

/// Times of the agent's programs. Those that are reached by tail call count for the
/// program that calls them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) ingress: Time,
    pub(super) egress: Time,
    /// Of `connect` and `sendmsg`.
    pub(super) calls: Time,
    /// Of all others.
    pub(super) others: Time,
}

impl Times {
    pub(super) fn since(self, before: &Self) -> Self {
        Self {
            ingress: self.ingress.since(before.ingress),
            egress: self.egress.since(before.egress),
            calls: self.calls.since(before.calls),
            others: self.others.since(before.others),
        }
    }
}

/// The programs of one node's agent.
pub(super) struct Programs(HashSet<u32>);

impl Programs {
    /// Finds them by the pinned maps that they use.
    pub(super) fn of(node: &Node) -> Result<Self> {
        let pins = Pins::new(node.pins().path());
        let maps: Result<HashSet<_>, _> = Pins::tables()
            .map(|(_, name)| MapInfo::from_pin(pins.map(&name)).map(|map| map.id()))
            .collect();
        let maps = maps.context("open the pinned maps")?;
        let ours = |program: &ProgramInfo| {
            let used = program.map_ids().ok().flatten().unwrap_or_default();
            used.iter().any(|map| maps.contains(map))
        };
        let programs: HashSet<_> = loaded().filter(ours).map(|program| program.id()).collect();
        ensure!(!programs.is_empty(), "no program of the agent is loaded");
        Ok(Self(programs))
    }

    /// The times of all runs so far while statistics were on.
    pub(super) fn times(&self) -> Times {
        let mut times = Times::default();
        for program in loaded().filter(|program| self.0.contains(&program.id())) {
            let time = Time::of(&program);
            match program.name_as_str().unwrap_or_default() {
                "ingress" => times.ingress.add(time),
                "egress" => times.egress.add(time),
                name if name.starts_with("connect") || name.starts_with("sendmsg") => {
                    times.calls.add(time);
                }
                _ => times.others.add(time),
            }
        }
        times
    }
}

/// All programs in the kernel but those that go meanwhile.
fn loaded() -> impl Iterator<Item = ProgramInfo> {
    loaded_programs().filter_map(Result::ok)
}

/// A program that does nothing, at both hooks of some devices.
pub(super) struct EmptyProgram(Datapath);

impl EmptyProgram {
    pub(super) fn attach(node: &Node, devices: &[&str]) -> Result<Self> {
        let mut datapath = Datapath::with_sizes(Datapath::SIZES);
        datapath.load_program("empty");
        let program = datapath.program_mut("empty");
        for device in devices {
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                let first = TcAttachOptions::TcxOrder(LinkOrder::first());
                node.run(|| program.attach_with_options(device, hook, first))?;
            }
        }
        Ok(Self(datapath))
    }

    pub(super) fn time(&self) -> Result<Time> {
        Ok(Time::of(&self.0.program("empty").info()?))
    }
}

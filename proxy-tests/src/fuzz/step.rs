//! The steps of a sequence, and their text form.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, Error, Result, bail};

use super::frame::Hex;
use crate::packet::Hook;

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) what: What,
    /// The packet that it happens to, or by.
    pub(super) packet: Vec<u8>,
}

/// The kinds of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It meets one hook.
    Meets(Hook),
    /// It asks from outside, and is answered.
    Asks,
    /// A process of the node asks by it, and is answered.
    HostAsks,
    /// It asks in three fragments, and is answered in three.
    AsksInPieces,
    /// The Services' endpoints change to those of [`Endpoints`]; its one byte says
    /// which.
    ///
    /// [`Endpoints`]: super::world::Endpoints
    Changes,
}

/// The kinds' names in text.
const NAMES: [(&str, What); 10] = [
    ("ingress", What::Meets(Hook::Ingress)),
    ("egress", What::Meets(Hook::Egress)),
    ("host-egress", What::Meets(Hook::HostEgress)),
    ("ingress-layer-3", What::Meets(Hook::IngressLayer3)),
    ("egress-layer-3", What::Meets(Hook::EgressLayer3)),
    ("through", What::Meets(Hook::Through)),
    ("asks", What::Asks),
    ("host-asks", What::HostAsks),
    ("asks-in-pieces", What::AsksInPieces),
    ("changes", What::Changes),
];

/// The differences of the second datapath from the first one, which takes the fast
/// path where it can and loses every hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Twin {
    /// Packets have a VLAN tag, with which they go the slow path.
    pub(super) slow: bool,
    /// Hints are there.
    pub(super) hints: bool,
}

/// All that happens to a pair of datapaths that know no flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    pub(super) twin: Twin,
    pub(super) steps: Vec<Step>,
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Twin { slow, hints } = self.twin;
        writeln!(f, "twin slow={slow} hints={hints}")?;
        for Step { what, packet } in &self.steps {
            let (name, _) = NAMES.iter().find(|(_, it)| it == what).ok_or(fmt::Error)?;
            writeln!(f, "{name} {}", Hex(packet))?;
        }
        Ok(())
    }
}

impl FromStr for Sequence {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let twin = match lines.next().context("an empty file")? {
            "twin slow=true hints=false" => (true, false),
            "twin slow=false hints=true" => (false, true),
            "twin slow=true hints=true" => (true, true),
            other => bail!("no twin: {other}"),
        };
        let (slow, hints) = twin;
        let twin = Twin { slow, hints };
        let steps = lines.map(step).collect::<Result<_>>()?;
        Ok(Self { twin, steps })
    }
}

fn step(line: &str) -> Result<Step> {
    let (name, digits) = line.split_once(' ').context("no packet")?;
    let found = NAMES.iter().find(|(known, _)| *known == name);
    let (_, what) = *found.with_context(|| format!("no step is called {name}"))?;
    let packet = digits.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair)?;
        Ok(u8::from_str_radix(pair, 16)?)
    });
    Ok(Step {
        what,
        packet: packet.collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let steps = NAMES.iter().map(|(_, what)| Step {
            what: *what,
            packet: vec![0, 0x9a, 0xff],
        });
        let sequence = Sequence {
            twin: Twin {
                slow: true,
                hints: false,
            },
            steps: steps.collect(),
        };
        let text = format!("# why\n{sequence}");
        assert_eq!(text.parse::<Sequence>().expect("readable"), sequence);
        assert!(
            "twin slow=true hints=true\nnothing 00"
                .parse::<Sequence>()
                .is_err()
        );
    }
}

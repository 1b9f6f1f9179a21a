//! From a program's answer, which names rows of tables, to what people know by
//! name.

use std::net::SocketAddr;

use anyhow::Context as _;
use proxy_common::{
    backend::Backend,
    explain::{Answer, Client, Decision, Masquerade},
    frontend::Frontend,
};
use serde::Serialize;

use super::{
    flow::{Flow, Transport, Via},
    reason,
};
use crate::{
    dataplane::tables::{KernelFamily, KernelTables},
    model::{IpFamily, ServicePortName},
    select::FrontendKind,
};

/// What becomes of a flow, as programs read it. Names and order of the fields
/// stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub from: String,
    pub to: SocketAddr,
    pub protocol: Transport,
    pub family: &'static str,
    pub via: Via,
    pub verdict: Verdict,
    /// `namespace/name:port`.
    pub service: Option<String>,
    pub frontend: Option<&'static str>,
    /// Every endpoint that the flow may reach, in the order of their text.
    pub endpoints: Vec<String>,
    pub chosen: Option<SocketAddr>,
    /// The chosen endpoint sees an address of this node.
    pub masquerade: bool,
    pub reason: String,
    #[serde(skip)]
    pub facts: Facts,
}

/// The verdict about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// To an endpoint.
    Forward,
    /// Refused, so that the client knows at once.
    Reject,
    /// Dropped without a word.
    Drop,
    /// Not ours, left to the host's routing.
    Pass,
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Pass | Decision::Listener | Decision::Loopback => Self::Pass,
            Decision::Forward => Self::Forward,
            Decision::NoEndpoint | Decision::UnknownPort => Self::Reject,
            Decision::NoLocalEndpoint
            | Decision::Denied
            | Decision::Unallocated
            | Decision::Reset
            | Decision::TooManyFrontends => Self::Drop,
        }
    }
}

impl Verdict {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::Pass => "pass",
        }
    }
}

/// All that is known of a flow's fate.
#[expect(clippy::struct_excessive_bools, reason = "any of them may be true")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub flow: Flow,
    pub via: Via,
    pub decision: Decision,
    pub client: Client,
    pub kind: Option<FrontendKind>,
    pub service: Option<ServicePortName>,
    /// The traffic policy that governs the frontend is Local.
    pub local_policy: bool,
    /// The local set is chosen from.
    pub local_set: bool,
    pub endpoints: Vec<SocketAddr>,
    pub chosen: Option<SocketAddr>,
    /// The chosen endpoint is on this node.
    pub chosen_here: bool,
    /// Whose address the chosen endpoint sees, if there is one.
    pub masquerade: Option<Masquerade>,
    /// Session affinity remembers the client.
    pub remembered: bool,
}

impl Facts {
    /// A flow that is not ours, as far as is known.
    pub const fn new(flow: Flow, via: Via) -> Self {
        Self {
            flow,
            via,
            decision: Decision::Pass,
            client: Client::External,
            kind: None,
            service: None,
            local_policy: false,
            local_set: false,
            endpoints: Vec::new(),
            chosen: None,
            chosen_here: false,
            masquerade: None,
            remembered: false,
        }
    }

    /// Nothing of ours happens to the flow, although a Service is addressed.
    pub fn leave(&mut self) {
        self.decision = Decision::Pass;
        self.endpoints.clear();
        self.chosen = None;
        self.masquerade = None;
    }

    /// Returns whether the chosen endpoint sees an address of this node.
    pub fn is_masqueraded(&self) -> bool {
        self.masquerade.is_some_and(Masquerade::hides_client)
    }
}

/// Adds what the programs answered about a flow.
pub fn answer<F: KernelFamily>(
    facts: &mut Facts,
    tables: &KernelTables<F>,
    answer: &Answer,
) -> anyhow::Result<()> {
    facts.decision = known(Decision::ALL, |code| code as u8, answer.decision)?;
    if !facts.decision.has_frontend() {
        return Ok(());
    }
    facts.kind = FrontendKind::from_code(answer.frontend.kind);
    facts.service = tables.name(answer.frontend.service)?;
    facts.local_set = answer.frontend.flags & Frontend::LOCAL_SET != 0;
    facts.local_policy = answer.flags & Answer::LOCAL_POLICY != 0;
    if facts.decision != Decision::Forward {
        return Ok(());
    }
    let address =
        |backend: Backend<F::Addr>| SocketAddr::new(F::ip(backend.addr).into(), backend.port.get());
    let chosen = tables.backend(answer.backend);
    facts.chosen = chosen.map(address);
    facts.chosen_here = chosen.is_some_and(|backend| backend.flags & Backend::<F::Addr>::HERE != 0);
    facts.client = known(Client::ALL, |code| code as u8, answer.client)?;
    let masquerade = known(Masquerade::ALL, |code| code as u8, answer.masquerade)?;
    facts.masquerade = Some(masquerade);
    facts.remembered = answer.flags & Answer::REMEMBERED != 0;
    facts.endpoints = if facts.remembered {
        facts.chosen.into_iter().collect()
    } else {
        tables
            .members(answer.range)
            .filter_map(|row| tables.backend(row))
            .map(address)
            .collect()
    };
    facts.endpoints.sort_by_cached_key(ToString::to_string);
    facts.endpoints.dedup();
    Ok(())
}

/// Reads a code of the program's.
fn known<T: Copy, const N: usize>(
    all: [T; N],
    number: impl Fn(T) -> u8,
    code: u8,
) -> anyhow::Result<T> {
    all.into_iter()
        .find(|one| number(*one) == code)
        .with_context(|| format!("the program answers {code}, which is unknown"))
}

impl From<Facts> for Explanation {
    fn from(facts: Facts) -> Self {
        Self {
            from: facts.flow.from.to_string(),
            to: facts.flow.to,
            protocol: facts.flow.transport,
            family: IpFamily::of(facts.flow.to.ip()).name(),
            via: facts.via,
            verdict: facts.decision.into(),
            service: facts.service.as_ref().map(ToString::to_string),
            frontend: facts.kind.map(FrontendKind::name),
            endpoints: facts.endpoints.iter().map(ToString::to_string).collect(),
            chosen: facts.chosen,
            masquerade: facts.is_masqueraded(),
            reason: reason::sentence(&facts),
            facts,
        }
    }
}

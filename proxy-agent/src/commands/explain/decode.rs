//! From a program's answer, which names rows of tables, to what people know by
//! name.

use std::net::SocketAddr;

use anyhow::Context as _;
use proxy_common::{
    backend::Backend,
    config::Config,
    explain::{Answer, Client, Decision},
    frontend::{Frontend, FrontendKey},
    net::BePort,
};
use serde::Serialize;

use super::{
    flow::{Flow, Transport, Via},
    reason,
};
use crate::{
    dataplane::tables::{KernelFamily, KernelTables, TableError},
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

/// What becomes of a flow.
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
            Decision::Pass => Self::Pass,
            Decision::Forward => Self::Forward,
            Decision::NoEndpoint | Decision::UnknownPort => Self::Reject,
            Decision::NoLocalEndpoint | Decision::Denied | Decision::Unallocated => Self::Drop,
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
    pub masquerade: bool,
    /// Session affinity remembers the client.
    pub remembered: bool,
    pub masquerade_all: bool,
    /// Something tells pods from others in this family.
    pub detector: bool,
    /// The address that the client connects to is one of this node.
    pub own_address: bool,
}

impl Facts {
    /// A flow that is not ours, as far as is known.
    pub fn new(flow: Flow, via: Via, config: &Config) -> Self {
        let by_prefix = match IpFamily::of(flow.to.ip()) {
            IpFamily::V4 => Config::DETECT_PREFIX_V4,
            IpFamily::V6 => Config::DETECT_PREFIX_V6,
        };
        Self {
            flow,
            via,
            decision: Decision::Pass,
            client: Client::External,
            kind: None,
            service: None,
            local_policy: false,
            own_address: false,
            local_set: false,
            endpoints: Vec::new(),
            chosen: None,
            chosen_here: false,
            masquerade: false,
            remembered: false,
            masquerade_all: config.flags & Config::MASQUERADE_ALL != 0,
            detector: config.flags & (by_prefix | Config::DETECT_DEVICE) != 0,
        }
    }

    /// Nothing of ours happens to the flow, although a Service is addressed.
    pub fn leave(&mut self) {
        self.decision = Decision::Pass;
        self.endpoints.clear();
        self.chosen = None;
        self.masquerade = false;
    }
}

/// Adds what the programs answered about a flow to `ip`.
pub fn answer<F: KernelFamily>(
    facts: &mut Facts,
    tables: &KernelTables<F>,
    ip: F::Ip,
    answer: &Answer,
) -> anyhow::Result<()> {
    facts.decision = Decision::ALL
        .into_iter()
        .find(|decision| *decision as u8 == answer.decision)
        .with_context(|| format!("the program answers {}, which is unknown", answer.decision))?;
    if answer.frontend.service == Frontend::NO_SERVICE {
        return Ok(());
    }
    facts.client = Client::ALL
        .into_iter()
        .find(|client| *client as u8 == answer.client)
        .unwrap_or(Client::External);
    facts.kind = FrontendKind::from_code(answer.frontend.kind);
    facts.service = tables.name(answer.frontend.service)?;
    facts.local_set = answer.frontend.flags & Frontend::LOCAL_SET != 0;
    facts.local_policy = facts.local_set || is_local_policy(facts, tables, ip)?;
    if facts.decision != Decision::Forward {
        return Ok(());
    }
    let address =
        |backend: Backend<F::Addr>| SocketAddr::new(F::ip(backend.addr).into(), backend.port.get());
    let chosen = tables.backend(answer.backend);
    facts.chosen = chosen.map(address);
    facts.chosen_here = chosen.is_some_and(|backend| backend.flags & Backend::<F::Addr>::HERE != 0);
    facts.masquerade = answer.masquerade != 0;
    facts.remembered = answer.remembered != 0;
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

/// Returns whether the policy is Local, also for clients that are exempt from it.
fn is_local_policy<F: KernelFamily>(
    facts: &Facts,
    tables: &KernelTables<F>,
    ip: F::Ip,
) -> Result<bool, TableError> {
    let port = BePort::new(facts.flow.to.port());
    let protocol = facts.flow.transport.number();
    let key = match facts.kind {
        Some(FrontendKind::NodePort) => FrontendKey::node_port(port, protocol),
        _ => FrontendKey::new(F::addr(ip), port, protocol),
    };
    let frontend = tables.frontend(&key)?;
    Ok(frontend.is_some_and(|frontend| frontend.flags & Frontend::LOCAL_SET != 0))
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
            masquerade: facts.masquerade,
            reason: reason::sentence(&facts),
            facts,
        }
    }
}

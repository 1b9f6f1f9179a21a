//! Why a flow is treated as it is, in sentences.

use proxy_common::explain::{Client, Decision};

use super::{
    decode::Facts,
    flow::{Transport, Via},
};
use crate::select::FrontendKind;

/// Returns why the flow gets the verdict it gets, in one sentence or a few.
pub fn sentence(facts: &Facts) -> String {
    let to = facts.flow.to;
    match facts.decision {
        Decision::Pass if to.ip().is_loopback() && facts.via != Via::Node => {
            format!(
                "{} is a loopback address: what a client sends there never leaves it.",
                to.ip()
            )
        }
        Decision::Pass if facts.service.is_some() => format!(
            "{} has {to} {}, but not for this node's own processes: their packets to its own addresses go by the loopback device, which has no programs, and {}.",
            service(facts),
            protocol(facts),
            match facts.flow.transport {
                Transport::Sctp => "calls of SCTP are not translated",
                Transport::Tcp | Transport::Udp =>
                    "their calls are not translated, because the agent found no cgroup2 to put programs on; `proxy-agent check` says what is missing",
            }
        ),
        Decision::Pass => format!(
            "No Service has {to} {}: the host's routing decides.",
            protocol(facts)
        ),
        Decision::Forward => format!("{} {}{}", set(facts), masquerade(facts), listener(facts)),
        Decision::NoEndpoint => format!(
            "{} has no endpoint that is ready, nor one that still serves while it terminates, on any node: the client is told at once.",
            service(facts)
        ),
        Decision::NoLocalEndpoint => format!(
            "{} is Local, and only other nodes have endpoints that can serve: this node drops what it may not pass on.",
            policy(facts)
        ),
        Decision::UnknownPort => format!(
            "{} is a Service's address, but no Service has port {} {} there: the client is told at once.",
            to.ip(),
            to.port(),
            protocol(facts)
        ),
        Decision::Denied => format!(
            "{} is in none of the loadBalancerSourceRanges of {}, which hold for everyone, pods and nodes too.",
            facts.flow.from.ip,
            service(facts)
        ),
        Decision::Unallocated => format!(
            "{} is in a range of cluster IPs, but no Service has it.",
            to.ip()
        ),
    }
}

/// Who may answer in the place of all endpoints.
fn listener(facts: &Facts) -> &'static str {
    if facts.own_address && facts.kind == Some(FrontendKind::ClusterIp) {
        " The cluster IP is an address of this node, too: a process that listens at this very address and port answers instead."
    } else {
        ""
    }
}

/// Returns which endpoints may answer, and why those.
pub fn set(facts: &Facts) -> String {
    if facts.remembered {
        return format!(
            "sessionAffinity ClientIP leads {} to the endpoint of its last connection.",
            facts.flow.from.ip
        );
    }
    let policy = policy(facts);
    match (facts.local_policy, facts.local_set) {
        (false, _) => format!(
            "{policy} is Cluster: endpoints of any node may answer, as far as topology hints allow."
        ),
        (true, true) => format!("{policy} is Local: only endpoints of this node may answer."),
        (true, false) => format!(
            "{policy} is Local, but not for {}: endpoints of any node may answer.",
            who(facts.client)
        ),
    }
}

/// Returns whether the endpoint sees the client's address, and why.
pub fn masquerade(facts: &Facts) -> String {
    let same = facts.chosen.map(|chosen| chosen.ip()) == Some(facts.flow.from.ip);
    let external = facts.kind != Some(FrontendKind::ClusterIp);
    let why = match (facts.masquerade, external) {
        (true, _) if same => "the client is the endpoint itself and would answer itself directly",
        (true, _) if facts.client == Client::Host => {
            "the client is this node itself, and replies must come back from the frontend"
        }
        (true, false) if facts.masquerade_all => "--masquerade-all",
        (true, false) => {
            "the local detector knows the client as no pod, so replies might take another way"
        }
        (true, true) => "the endpoint is on another node, and its replies must come back here",
        (false, false) if facts.client == Client::Pod => "pods are seen as they are",
        (false, false) => "no local detector tells who is no pod",
        (false, true) if facts.local_policy && facts.client == Client::External => {
            "externalTrafficPolicy Local keeps it"
        }
        (false, true) if facts.via == Via::Pod => {
            "the client is a pod of this node, so replies pass here anyway"
        }
        (false, true) => "the endpoint is on this node, so replies pass here anyway",
    };
    if facts.masquerade {
        format!("The endpoint sees an address of this node: {why}.")
    } else {
        format!("The endpoint sees the client's address: {why}.")
    }
}

fn policy(facts: &Facts) -> &'static str {
    if facts.kind == Some(FrontendKind::ClusterIp) {
        "internalTrafficPolicy"
    } else {
        "externalTrafficPolicy"
    }
}

/// The client, as traffic policies see it.
pub fn who(client: Client) -> &'static str {
    match client {
        Client::Pod => "pods",
        Client::Host => "this node's own processes",
        Client::External => "others",
    }
}

fn service(facts: &Facts) -> String {
    facts
        .service
        .as_ref()
        .map_or_else(|| "The Service".to_owned(), ToString::to_string)
}

/// The protocol as people write it.
pub fn protocol(facts: &Facts) -> &'static str {
    match facts.flow.transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
        Transport::Sctp => "SCTP",
    }
}

//! Why a flow is treated as it is, in sentences.

use proxy_common::explain::{Client, Decision, Masquerade};

use super::{decode::Facts, flow::Transport};
use crate::select::FrontendKind;

/// Returns why the flow gets the verdict it gets, in one sentence or a few.
pub fn sentence(facts: &Facts) -> String {
    let to = facts.flow.to;
    match facts.decision {
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
        Decision::Listener => format!(
            "{to} is {}, but the cluster IP is an address of this node, too, and a process of this node listens at this very address and port: it answers instead.",
            service(facts)
        ),
        Decision::Loopback => format!(
            "{} is a loopback address: only this node's own processes reach {} there.",
            to.ip(),
            service(facts)
        ),
        Decision::Forward => match facts.masquerade {
            Some(reason) => format!("{} {}", set(facts), masquerade(reason)),
            None => set(facts),
        },
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
        Decision::Reset => format!(
            "No connection from {} to {to} is known that this could reset.",
            facts.flow.from
        ),
        Decision::TooManyFrontends => format!(
            "{} has flows to as many frontends as one client port can have; it can have another one when one of them ends.",
            facts.flow.from
        ),
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

/// Returns whose address the endpoint sees, and why.
fn masquerade(reason: Masquerade) -> String {
    let why = match reason {
        Masquerade::Pod => "pods are seen as they are",
        Masquerade::NoDetector => "no local detector tells who is no pod",
        Masquerade::LocalPolicy => "externalTrafficPolicy Local keeps it",
        Masquerade::ClientIsHere => "the client is a pod of this node, so replies pass here anyway",
        Masquerade::BackendIsHere => {
            "the endpoint is on this node, behind a device with programs, so replies pass here anyway"
        }
        Masquerade::BackendIsNode => {
            "the endpoint is this node itself, so replies pass here anyway"
        }
        Masquerade::Itself => "the client is the endpoint itself and would answer itself directly",
        Masquerade::Host => {
            "the client is this node itself, and replies must come back from the frontend"
        }
        Masquerade::All => "--masquerade-all",
        Masquerade::NotPod => {
            "the local detector knows the client as no pod, so replies might take another way"
        }
        Masquerade::BackendElsewhere => {
            "the endpoint is on another node, and its replies must come back here"
        }
        Masquerade::NoPrograms => {
            "the endpoint is on this node, but behind a device without programs, which its replies would pass unseen"
        }
        Masquerade::NotPodDevice => {
            "the endpoint is on this node, but routing leads to it by a device that is not known to lead to pods, and its replies might come by another one"
        }
        Masquerade::NoRoute => "the endpoint is on this node, but no route leads to it",
    };
    if reason.hides_client() {
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

//! An explanation for people: what matched, who may answer, and what is
//! rewritten where.

use std::fmt::Write as _;

use proxy_common::explain::{Client, Decision};

use crate::escape::Escaped;

use super::{
    decode::{Explanation, Facts},
    flow::Via,
    reason,
};

/// Endpoints that are shown; more are counted.
const MAX_ENDPOINTS: usize = 20;

/// Some lines, the last one ended.
pub fn render(explanation: &Explanation) -> String {
    let facts = &explanation.facts;
    let mut text = format!(
        "{} -> {} {}, {}\n",
        explanation.from,
        explanation.to,
        reason::protocol(facts),
        origin(facts)
    );
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<12}{}", Escaped(value));
    };
    line("verdict", explanation.verdict.name());
    if let (Some(service), Some(frontend)) = (&explanation.service, explanation.frontend) {
        line("service", &format!("{service}, by its {frontend}"));
    }
    if facts.decision == Decision::Forward {
        line("endpoints", &endpoints(&explanation.endpoints));
        line("chosen", &chosen(facts));
        line(
            "masquerade",
            if facts.is_masqueraded() { "yes" } else { "no" },
        );
    }
    line("because", &explanation.reason);
    if facts.decision == Decision::Forward {
        for (name, value) in rewrites(facts) {
            line(name, &value);
        }
    }
    text
}

fn origin(facts: &Facts) -> String {
    let place = match facts.via {
        Via::Pod => "from a pod of this node",
        Via::Node => "from this node itself",
        Via::External => "from outside this node",
    };
    let said = if facts.flow.via.is_some() {
        ""
    } else {
        " (by its address; --via says otherwise)"
    };
    format!("{place}{said}")
}

fn endpoints(all: &[String]) -> String {
    let shown = all.len().min(MAX_ENDPOINTS);
    let mut text = all[..shown].join(", ");
    if all.len() > shown {
        let _ = write!(text, " and {} more", all.len() - shown);
    }
    text
}

fn chosen(facts: &Facts) -> String {
    let Some(chosen) = facts.chosen else {
        return "-".to_owned();
    };
    let place = if facts.chosen_here {
        "on this node"
    } else {
        "not on this node"
    };
    let example = if facts.flow.from.port.is_none() && facts.endpoints.len() > 1 {
        "; depends on the client's port"
    } else {
        ""
    };
    format!("{chosen}, {place}{example}")
}

/// Returns the rewrites at each hook, on the way there and back.
fn rewrites(facts: &Facts) -> Vec<(&'static str, String)> {
    let Some(chosen) = facts.chosen else {
        return Vec::new();
    };
    let (client, frontend) = (facts.flow.from.ip, facts.flow.to);
    let host = facts.client == Client::Host;
    let (there, back) = if host {
        (
            "egress of the device that the route to it names",
            "ingress of the endpoint's device",
        )
    } else {
        (
            "ingress of the client's device",
            "egress of the client's device",
        )
    };
    let mut rewrites = vec![(
        "there",
        format!("{there}: destination {frontend} becomes {chosen}"),
    )];
    if facts.is_masqueraded() {
        rewrites.push((
            "",
            format!(
                "egress of the endpoint's device: source {client} becomes that device's address"
            ),
        ));
        rewrites.push((
            "back",
            format!(
                "ingress of the endpoint's device: destination becomes {client} with its port again"
            ),
        ));
    }
    let name = if facts.is_masqueraded() { "" } else { "back" };
    rewrites.push((name, format!("{back}: source {chosen} becomes {frontend}")));
    rewrites
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proxy_common::{explain::Masquerade, net::Protocol};
    use rstest::rstest;

    use super::*;
    use crate::{
        commands::explain::flow::{Flow, Transport},
        model::{ObjectKey, ServicePortName},
        select::FrontendKind,
    };

    fn facts(from: &str, to: &str, via: Via) -> Facts {
        let from = from.parse().expect("a client");
        let to = to.parse().expect("a destination");
        let flow = Flow::new(from, to, Transport::Tcp, Some(via)).expect("one family");
        Facts::new(flow, via)
    }

    /// A flow to an external frontend of policy Local.
    fn forwarded(from: &str, to: &str, via: Via, client: Client, endpoint: &str) -> Facts {
        let endpoint: SocketAddr = endpoint.parse().expect("an endpoint");
        Facts {
            decision: Decision::Forward,
            client,
            kind: Some(FrontendKind::NodePort),
            service: Some(ServicePortName {
                service: ObjectKey::new("shop", "web"),
                port: "http".into(),
                protocol: Protocol::TCP,
            }),
            local_policy: true,
            local_set: client == Client::External,
            endpoints: vec![endpoint],
            chosen: Some(endpoint),
            masquerade: Some(match client {
                Client::Host => Masquerade::Host,
                _ => Masquerade::LocalPolicy,
            }),
            ..facts(from, to, via)
        }
    }

    #[test]
    fn shows_what_is_rewritten_where() {
        let facts = forwarded(
            "[fd00::7]:4000",
            "[fd00:192::1]:30080",
            Via::External,
            Client::External,
            "[fd00:244::9]:8080",
        );
        assert_eq!(
            render(&facts.into()),
            "[fd00::7]:4000 -> [fd00:192::1]:30080 TCP, from outside this node
  verdict     forward
  service     shop/web:http, by its NodePort
  endpoints   [fd00:244::9]:8080
  chosen      [fd00:244::9]:8080, not on this node
  masquerade  no
  because     externalTrafficPolicy is Local: only endpoints of this node may answer. \
             The endpoint sees the client's address: externalTrafficPolicy Local keeps it.
  there       ingress of the client's device: destination [fd00:192::1]:30080 becomes [fd00:244::9]:8080
  back        egress of the client's device: source [fd00:244::9]:8080 becomes [fd00:192::1]:30080
"
        );
    }

    /// As a manifest may name a Service.
    #[test]
    fn names_cannot_write_lines_of_their_own() {
        let plain = forwarded(
            "[fd00::7]:4000",
            "[fd00:192::1]:30080",
            Via::External,
            Client::External,
            "[fd00:244::9]:8080",
        );
        let named = Facts {
            service: Some(ServicePortName {
                service: ObjectKey::new("shop", "web\n  verdict     drop\u{1b}[2J"),
                port: "a\rb".into(),
                protocol: Protocol::TCP,
            }),
            ..plain.clone()
        };
        let text = render(&named.into());
        let name = r"shop/web\n  verdict     drop\u{1b}[2J:a\rb, by its NodePort";
        assert!(text.contains(name), "{text}");
        assert_eq!(text.lines().count(), render(&plain.into()).lines().count());
    }

    #[test]
    fn shows_what_is_rewritten_for_the_nodes_own_processes() {
        let facts = forwarded(
            "192.168.1.1:4000",
            "192.168.1.1:30080",
            Via::Node,
            Client::Host,
            "10.244.1.9:8080",
        );
        let text = render(&facts.into());
        for line in [
            "not for this node's own processes",
            "there       egress of the device that the route to it names: destination",
            "egress of the endpoint's device: source 192.168.1.1 becomes that device's address",
            "back        ingress of the endpoint's device: destination becomes 192.168.1.1",
            "ingress of the endpoint's device: source 10.244.1.9:8080 becomes 192.168.1.1:30080",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[rstest]
    #[case(Decision::Pass, "pass", "the host's routing decides")]
    #[case(Decision::NoEndpoint, "reject", "on any node")]
    #[case(Decision::NoLocalEndpoint, "drop", "internalTrafficPolicy is Local")]
    #[case(Decision::UnknownPort, "reject", "no Service has port 80 TCP there")]
    #[case(Decision::Denied, "drop", "loadBalancerSourceRanges")]
    #[case(Decision::Unallocated, "drop", "range of cluster IPs")]
    #[case(Decision::Listener, "pass", "listens at this very address and port")]
    #[case(Decision::Loopback, "pass", "only this node's own processes")]
    #[case(Decision::Reset, "drop", "could reset")]
    #[case(
        Decision::TooManyFrontends,
        "drop",
        "as many frontends as one client port"
    )]
    fn refusals_say_why(#[case] decision: Decision, #[case] verdict: &str, #[case] why: &str) {
        for (from, to) in [("10.0.0.1", "10.96.0.1:80"), ("fd00::1", "[fd00:96::1]:80")] {
            let facts = Facts {
                decision,
                kind: Some(FrontendKind::ClusterIp),
                ..facts(from, to, Via::Pod)
            };
            let text = render(&facts.into());
            assert!(
                text.contains(&format!("  verdict     {verdict}\n")),
                "{text}"
            );
            assert!(text.contains(why), "{text}");
            assert!(!text.contains("endpoints   "), "{text}");
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let all: Vec<_> = (1..=25).map(|n| format!("10.0.0.{n}:80")).collect();
        let text = endpoints(&all);
        assert!(text.ends_with("10.0.0.20:80 and 5 more"), "{text}");
    }
}

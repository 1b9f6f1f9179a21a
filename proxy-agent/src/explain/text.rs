//! An explanation for people: what matched, who may answer, and what is
//! rewritten where.

use std::fmt::Write as _;

use proxy_common::explain::{Client, Decision};

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
        let _ = writeln!(text, "  {name:<12}{value}");
    };
    line("verdict", explanation.verdict.name());
    if let (Some(service), Some(frontend)) = (&explanation.service, explanation.frontend) {
        line("service", &format!("{service}, by its {frontend}"));
    }
    if facts.decision == Decision::Forward {
        line("endpoints", &endpoints(&explanation.endpoints));
        line("chosen", &chosen(facts));
        line("masquerade", if facts.masquerade { "yes" } else { "no" });
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

/// What is rewritten at which hook, on the way there and back.
fn rewrites(facts: &Facts) -> Vec<(&'static str, String)> {
    let Some(chosen) = facts.chosen else {
        return Vec::new();
    };
    let (client, front_end) = (facts.flow.from.ip, facts.flow.to);
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
        format!("{there}: destination {front_end} becomes {chosen}"),
    )];
    if facts.masquerade {
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
    let name = if facts.masquerade { "" } else { "back" };
    rewrites.push((name, format!("{back}: source {chosen} becomes {front_end}")));
    rewrites
}

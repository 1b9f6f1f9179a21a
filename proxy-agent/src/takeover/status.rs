//! How a take-over stands, and whether the proxy that is left can go.

use std::fmt;

use super::{Left, phase::Phase, rules::Rules};

/// What is known of both proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub phase: Phase,
    /// The agent that writes the tables, if one does.
    pub owner: Option<String>,
    /// Some Service is in the tables.
    pub serves: bool,
    /// Flows of kube-proxy that go on.
    pub left: Left,
    /// Connections that kube-proxy's rules translate before a packet comes to us: those of
    /// processes of this node.
    pub by_rules: Left,
    pub ours: Left,
    /// `None` if the kernel does not tell.
    pub rules: Option<Rules>,
    /// Process ids of kube-proxy, as far as they can be seen from here.
    pub processes: Vec<u32>,
}

impl Status {
    /// Why the proxy that is to go cannot go yet: kube-proxy, or this one on the way back.
    pub fn objections(&self) -> Vec<String> {
        if self.phase == Phase::GiveBack {
            return self.objections_to_removal();
        }
        let mut objections = Vec::new();
        if self.owner.is_none() {
            objections.push("no agent runs here".to_owned());
        }
        if !self.serves {
            objections.push("no Service is in the tables".to_owned());
        }
        if self.phase == Phase::Hold {
            objections.push("all flows are kube-proxy's until the tables are complete".to_owned());
        }
        if !self.left.is_empty() {
            objections.push(format!("{} of kube-proxy go on", self.left));
        }
        match &self.rules {
            None => objections.push("netfilter's rules cannot be read".to_owned()),
            Some(rules) => objections.extend(rules.dropping.iter().map(|chain| {
                format!(
                    "{chain} has policy DROP, which drops forwarded traffic once kube-proxy's rules do not accept it"
                )
            })),
        }
        objections
    }

    fn objections_to_removal(&self) -> Vec<String> {
        let mut objections = Vec::new();
        if self
            .rules
            .as_ref()
            .is_none_or(|rules| rules.of_kube_proxy.is_empty())
        {
            objections.push("no rules of kube-proxy are here".to_owned());
        }
        if !self.ours.is_empty() {
            objections.push(format!("{} of ours go on", self.ours));
        }
        objections
    }

    fn of_kube_proxy(&self) -> String {
        let processes = self.processes.iter();
        let processes = processes.map(|process| format!("process {process}"));
        let rules = self
            .rules
            .iter()
            .flat_map(|rules| rules.of_kube_proxy.clone());
        let found: Vec<_> = processes.chain(rules).collect();
        match found[..] {
            [] => "nothing of it was found".to_owned(),
            _ => found.join(", "),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = match self.phase {
            Phase::Off => "all flows are ours",
            Phase::Hold => "all flows are kube-proxy's",
            Phase::TakeOver if self.left.is_empty() => "all flows are ours, kube-proxy has rules",
            Phase::TakeOver => "new flows are ours, those of kube-proxy go on",
            Phase::GiveBack => "new flows are kube-proxy's, ours go on",
        };
        writeln!(f, "phase:      {phase}")?;
        writeln!(f, "kube-proxy: {}", self.of_kube_proxy())?;
        writeln!(f, "left to it: {}", self.left)?;
        if !self.by_rules.is_empty() {
            writeln!(
                f,
                "by its rules: {} of processes of this node, and new ones until its rules are gone",
                self.by_rules
            )?;
        }
        writeln!(f, "ours:       {}", self.ours)?;
        let objections = self.objections();
        let question = match self.phase {
            Phase::GiveBack => "safe to remove this proxy (`proxy-agent cleanup`)",
            _ => {
                "safe to stop kube-proxy and to remove its rules (`proxy-agent cleanup --kube-proxy`)"
            }
        };
        let answer = if objections.is_empty() { "yes" } else { "no" };
        writeln!(f, "{question}: {answer}")?;
        for objection in objections {
            writeln!(f, "  {objection}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::{family::V4, net::Protocol};
    use rstest::rstest;

    use super::*;

    fn flows() -> Left {
        let mut left = Left::default();
        left.count::<V4>(Protocol::TCP);
        left
    }

    fn rules(dropping: &[&str]) -> Rules {
        Rules {
            of_kube_proxy: ["nftables table ip kube-proxy".to_owned()].into(),
            dropping: dropping.iter().map(|&chain| chain.to_owned()).collect(),
        }
    }

    fn over() -> Status {
        Status {
            phase: Phase::Off,
            owner: Some("an agent".to_owned()),
            serves: true,
            left: Left::default(),
            by_rules: flows(),
            ours: flows(),
            rules: Some(rules(&[])),
            processes: vec![7],
        }
    }

    #[rstest]
    #[case::over(over(), &[])]
    #[case::flows_left(Status { phase: Phase::TakeOver, left: flows(), ..over() }, &["1 flows"])]
    #[case::not_begun(Status { phase: Phase::Hold, ..over() }, &["until the tables"])]
    #[case::no_agent(Status { owner: None, ..over() }, &["no agent"])]
    #[case::no_services(Status { serves: false, ..over() }, &["no Service"])]
    #[case::unknown_rules(Status { rules: None, ..over() }, &["cannot be read"])]
    #[case::docker(Status { rules: Some(rules(&["chain ip filter FORWARD"])), ..over() }, &["policy DROP"])]
    #[case::back(Status { phase: Phase::GiveBack, ..over() }, &["of ours go on"])]
    #[case::given_back(Status { phase: Phase::GiveBack, ours: Left::default(), ..over() }, &[])]
    #[case::given_to_nobody(
        Status { phase: Phase::GiveBack, ours: Left::default(), rules: Some(Rules::default()), ..over() },
        &["no rules"],
    )]
    fn what_is_in_the_way_is_said(#[case] status: Status, #[case] expected: &[&str]) {
        let objections = status.objections();
        assert_eq!(objections.len(), expected.len(), "{objections:?}");
        for (objection, expected) in objections.iter().zip(expected) {
            assert!(objection.contains(expected), "{objection}");
        }
        let answer = if expected.is_empty() {
            ": yes\n"
        } else {
            ": no\n"
        };
        assert!(status.to_string().contains(answer), "{status}");
    }
}

//! Counters that an operator should hear of: what they count is lost traffic
//! that somebody can do something about.

use std::collections::BTreeMap;

use proxy_common::counter::Counter;
use tracing::warn;

/// These counters, and what to do when one rises.
const ADVICE: [(Counter, &str); 9] = [
    (
        Counter::FlowTableFull,
        "open flows are not harmed; start the agent with a larger --flow-table-size, which carries them over",
    ),
    (
        Counter::ClientOverShare,
        "others have theirs; `proxy-agent get flows` shows whose the flows are; a larger --flow-table-size takes effect with the next start and carries flows over",
    ),
    (
        Counter::MasqueradePortsExhausted,
        "too many masqueraded flows lead to one backend; add backends, or ports with --masquerade-ports",
    ),
    (
        Counter::MasqueradeNoAddress,
        "give the device or the Node object an address of the family",
    ),
    (
        Counter::NoRoute,
        "this node has no route to a backend; see `ip route get`",
    ),
    (
        Counter::ForwardingOff,
        "`sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1`",
    ),
    (
        Counter::SctpFragment,
        "use the same port and targetPort for SCTP, or a smaller message size",
    ),
    (
        Counter::RewriteFailed,
        "packets could not be rewritten; please report this with the kernel's version",
    ),
    (
        Counter::SlowPathMissing,
        "restart the agent, which puts its programs in place; please report this if it goes on",
    ),
];

/// The counters when they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Advice {
    seen: Option<BTreeMap<&'static str, u64>>,
}

impl Advice {
    /// Logs the counters that rose since the last time. Logs nothing the first time: an
    /// earlier agent has done so.
    pub(super) fn tell(&mut self, counted: BTreeMap<&'static str, u64>) {
        for (counter, count, advice) in self.news(counted) {
            warn!(
                counter = counter.label(),
                count,
                "{} {advice}",
                counter.help().trim()
            );
        }
    }

    fn news(&mut self, counted: BTreeMap<&'static str, u64>) -> Vec<(Counter, u64, &'static str)> {
        let of = |counts: &BTreeMap<&'static str, u64>, counter: Counter| {
            counts.get(counter.label()).copied().unwrap_or(0)
        };
        let rise = |counter: Counter| {
            let seen = self.seen.as_ref()?;
            Some(of(&counted, counter).saturating_sub(of(seen, counter)))
        };
        let news = ADVICE
            .into_iter()
            .filter_map(|(counter, advice)| Some((counter, rise(counter)?, advice)))
            .filter(|(_, rise, _)| *rise > 0)
            .collect();
        self.seen = Some(counted);
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(counts: &[(Counter, u64)]) -> BTreeMap<&'static str, u64> {
        let counts = counts.iter();
        counts
            .map(|(counter, count)| (counter.label(), *count))
            .collect()
    }

    #[test]
    fn what_rises_is_told_once() {
        let mut advice = Advice::default();
        let full = |count| {
            counted(&[
                (Counter::FlowTableFull, count),
                (Counter::FlowCreated, count),
            ])
        };
        assert_eq!(advice.news(full(7)), []);
        assert_eq!(advice.news(full(7)), []);
        let news = advice.news(full(9));
        assert_eq!(news.len(), 1, "flows that are opened are no trouble");
        assert_eq!((news[0].0, news[0].1), (Counter::FlowTableFull, 2));
        assert_eq!(advice.news(full(9)), []);
    }

    #[test]
    fn a_new_table_begins_at_nothing() {
        let mut advice = Advice::default();
        advice.news(counted(&[(Counter::NoRoute, 9)]));
        assert_eq!(advice.news(counted(&[(Counter::NoRoute, 3)])), []);
    }
}

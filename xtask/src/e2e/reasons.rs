//! Why tests of Kubernetes need not pass: they are about kube-proxy's means, or
//! about something that these clusters do not have.

/// Parts of names, with the reason.
const REASONS: &[(&str, &str)] = &[("KubeProxyNFAcct", "reads counters of netfilter")];

/// Returns why a test need not pass, if there is a reason.
pub(super) fn of(name: &str) -> Option<&'static str> {
    REASONS
        .iter()
        .find(|(part, _)| name.contains(part))
        .map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_tests_have_no_reason_to_fail() {
        assert!(of("[sig-network] Services should serve a basic endpoint from pods").is_none());
        assert!(of("[sig-network] Networking should check kube-proxy urls").is_none());
        assert!(of("[sig-network] [Feature:KubeProxyNFAcct] KubeProxy").is_some());
    }
}

//! Why tests of Kubernetes need not pass: they are about kube-proxy's means, or
//! about something that these clusters do not have.

/// Parts of names, with the reason.
const REASONS: &[(&str, &str)] = &[
    ("KubeProxyNFAcct", "reads counters of netfilter"),
    (
        "Networking IPerf2",
        "starts an iperf of another make than Debian's, which the images lack",
    ),
    (
        "LoadBalancers [Feature:LoadBalancer] should only allow access from service loadbalancer source ranges",
        "in IPv6, calls wget with an address without its brackets",
    ),
    (
        "LoadBalancers ExternalTrafficPolicy: Local [Feature:LoadBalancer] [Slow] should work from pods",
        "in IPv6, takes what is before the first colon for the client's address",
    ),
    (
        "LoadBalancers ExternalTrafficPolicy: Local [Feature:LoadBalancer] [Slow] should only target nodes with endpoints",
        "asks a Service of one family for its health at addresses of both",
    ),
];

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

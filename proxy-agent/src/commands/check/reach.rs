//! The effect of routing on packets to and from Services.

use crate::commands::check::Finding;

/// The host's routes, as far as they matter to Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Devices on which the kernel drops IPv4 packets whose source it would
    /// reach by another device (`rp_filter` 1).
    pub strict: Vec<String>,
    /// Devices by which routes lead to other routers.
    pub gateways: Vec<String>,
    /// True if there is a default route; `None` if that is unknown, or if this host has no
    /// address of the family.
    pub default_v4: Option<bool>,
    pub default_v6: Option<bool>,
}

/// Judges the routes.
pub fn evaluate(reach: &Reach) -> Vec<Finding> {
    let mut findings = vec![reverse_path(reach)];
    findings.extend(default_route("IPv4", "ip route", reach.default_v4));
    findings.extend(default_route("IPv6", "ip -6 route", reach.default_v6));
    findings
}

/// The strict filter agrees with translation (E4, E5), but not with clients
/// whose packets come by one way and whose answers leave by another.
fn reverse_path(reach: &Reach) -> Finding {
    let several: Vec<_> = reach
        .gateways
        .iter()
        .filter(|device| reach.strict.contains(device))
        .map(String::as_str)
        .collect();
    if let [_, .., last] = several[..] {
        return Finding::warn(
            format!(
                "the reverse path filter is strict on several devices that lead away ({}): \
                 clients that come by one and are reached by another get no answer",
                several.join(", ")
            ),
            format!("`sysctl -w net.ipv4.conf.{}.rp_filter=2`", sysctl(last)),
        );
    }
    Finding::ok(if reach.strict.is_empty() {
        "the reverse path filter is not strict".to_owned()
    } else {
        format!(
            "the reverse path filter is strict on {}",
            reach.strict.join(", ")
        )
    })
}

/// A device's name as `sysctl` spells it.
fn sysctl(device: &str) -> String {
    device.replace('.', "/")
}

/// Warns if there is no default route: a packet of a local process is routed before it is
/// translated.
fn default_route(family: &str, tool: &str, state: Option<bool>) -> Option<Finding> {
    Some(if state? {
        Finding::ok(format!("{family} has a default route"))
    } else {
        Finding::warn(
            format!(
                "{family} has no default route: packets of this node's own processes to Services \
                 need a route that covers the cluster IPs"
            ),
            format!("`{tool} add CLUSTER-IPS dev DEVICE`"),
        )
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::commands::check::Level;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[rstest]
    #[case::off(&[], &["eth0"], Level::Ok, "is not strict")]
    #[case::one_way(&["cni0", "eth0"], &["eth0"], Level::Ok, "strict on cni0, eth0")]
    #[case::others_are_loose(&["eth0"], &["eth0", "eth1"], Level::Ok, "strict on eth0")]
    #[case::several_ways(
        &["eth0", "eth1.7"],
        &["eth0", "eth1.7"],
        Level::Warn,
        "(eth0, eth1.7): clients that come by one and are reached by another get no answer: \
         `sysctl -w net.ipv4.conf.eth1/7.rp_filter=2`",
    )]
    fn the_strict_filter_is_bad_where_there_are_several_ways(
        #[case] strict: &[&str],
        #[case] gateways: &[&str],
        #[case] level: Level,
        #[case] text: &str,
    ) {
        let finding = reverse_path(&Reach {
            strict: names(strict),
            gateways: names(gateways),
            ..Reach::default()
        });
        assert_eq!(finding.level, level);
        assert!(finding.to_string().contains(text), "{finding}");
    }

    #[test]
    fn each_family_needs_its_own_default_route() {
        let lines = |default_v4, default_v6| {
            let findings = evaluate(&Reach {
                default_v4,
                default_v6,
                ..Reach::default()
            });
            findings[1..]
                .iter()
                .map(|finding| {
                    (
                        finding.level,
                        finding.what.split(':').next().map(str::to_owned),
                    )
                })
                .collect::<Vec<_>>()
        };
        let line = |level, text: &str| (level, Some(text.to_owned()));
        let has = |family: &str| line(Level::Ok, &format!("{family} has a default route"));
        let lacks = |family: &str| line(Level::Warn, &format!("{family} has no default route"));
        assert_eq!(lines(Some(true), Some(false)), [has("IPv4"), lacks("IPv6")]);
        assert_eq!(lines(Some(false), Some(true)), [lacks("IPv4"), has("IPv6")]);
        assert_eq!(lines(None, None), []);
    }
}

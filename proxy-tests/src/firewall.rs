//! Netfilter rules other software leaves on a node.

use crate::{
    addressing::{cluster_cidr, pod_cidr},
    family::Family,
};

/// A stateful forward chain that drops what conntrack cannot place: the rule
/// firewalld, kube-router and old kube-proxies have.
pub const DROP_INVALID: &str = "
table inet filter {
  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state invalid counter drop
    ct state established,related accept
  }
}
";

/// flannel's masquerade rules for node `node`: its pods to the world, and the
/// world to pods of other nodes.
pub fn flannel_masquerade(family: Family, node: u8) -> String {
    let (ip, multicast) = match family {
        Family::V4 => ("ip", "224.0.0.0/4"),
        Family::V6 => ("ip6", "ff00::/8"),
    };
    let (cluster, own) = (cluster_cidr(family), pod_cidr(family, node));
    format!(
        "
table {ip} flannel {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    {ip} saddr {own} {ip} daddr {cluster} return
    {ip} saddr {cluster} {ip} daddr {own} return
    {ip} saddr {cluster} {ip} daddr != {multicast} masquerade fully-random
    {ip} saddr != {cluster} {ip} daddr {own} return
    {ip} saddr != {cluster} {ip} daddr {cluster} masquerade fully-random
  }}
}}
"
    )
}

//! kube-proxy's rules, as its mode nftables writes them for one Service.

use std::{fmt::Write, net::IpAddr};

use crate::{
    addressing::cluster_cidr,
    family::Family,
    host::Host,
    manifest::{ECHO_PORT, ECHO_TARGET, Service},
    node::Node,
};

/// Returns the rules that lead the Service's cluster IP, and this NodePort, to backends,
/// over TCP and UDP.
pub fn rules(node: &Node, service: &Service, node_port: u16, backends: &[&Host]) -> String {
    let mut rules = String::new();
    for address in node.addresses().list() {
        rules.push_str(&of_family(
            Family::of(address),
            service,
            node_port,
            backends,
        ));
    }
    rules
}

fn of_family(family: Family, service: &Service, node_port: u16, backends: &[&Host]) -> String {
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let (vip, pods) = (service.cluster_ip(family), cluster_cidr(family));
    let addresses: Vec<IpAddr> = backends.iter().map(|host| host.address(family)).collect();
    let mut endpoints = String::new();
    let mut choices = String::new();
    for (index, address) in addresses.iter().enumerate() {
        let at = match address {
            IpAddr::V4(address) => format!("{address}:{ECHO_TARGET}"),
            IpAddr::V6(address) => format!("[{address}]:{ECHO_TARGET}"),
        };
        let _ = write!(
            endpoints,
            "
  chain endpoint-{index} {{
    {ip} saddr {address} jump mark-for-masquerade
    meta l4proto tcp dnat to {at}
    meta l4proto udp dnat to {at}
  }}"
        );
        let _ = write!(choices, "{index} : goto endpoint-{index}, ");
    }
    format!(
        "
table {ip} kube-proxy {{
  chain mark-for-masquerade {{
    meta mark set meta mark or 0x4000
  }}{endpoints}
  chain service {{
    numgen random mod {} vmap {{ {choices} }}
  }}
  chain cluster-ip {{
    {ip} saddr != {pods} jump mark-for-masquerade
    goto service
  }}
  chain node-port {{
    jump mark-for-masquerade
    goto service
  }}
  chain services {{
    {ip} daddr {vip} meta l4proto {{ tcp, udp }} th dport {ECHO_PORT} goto cluster-ip
    fib daddr type local meta l4proto {{ tcp, udp }} th dport {node_port} goto node-port
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark and 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }}
}}
",
        addresses.len()
    )
}

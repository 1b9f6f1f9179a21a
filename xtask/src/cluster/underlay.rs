//! The network that joins the hosts of a cluster: a bridge in a network
//! namespace of its own, and each host in one, with a device at that bridge.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    addresses,
    place::{CONTROL_PLANE, OUTSIDE, Place, SWITCH, node_name},
    spec::{Cni, Family, Spec},
};
use crate::exec;

/// Makes all hosts of a cluster, before anything runs in them.
pub(crate) fn create(place: &Place, spec: &Spec) -> Result<()> {
    add_namespace(place, SWITCH)?;
    route(place)?;
    batch(place, SWITCH, &switch(spec))?;
    add_namespace(place, OUTSIDE)?;
    batch(place, SWITCH, &way_out(place, spec))?;
    batch(place, OUTSIDE, &outside(spec))?;
    host(place, spec, None)?;
    spec.nodes()
        .try_for_each(|(number, _)| host(place, spec, Some(number)))
}

/// Makes a node, or the control plane.
pub(crate) fn host(place: &Place, spec: &Spec, number: Option<u8>) -> Result<()> {
    let host = number.map_or_else(|| CONTROL_PLANE.to_owned(), node_name);
    add_namespace(place, &host)?;
    batch(place, SWITCH, &cable(place, &host))?;
    forward(place, &host)?;
    batch(place, &host, &settings(spec, number))
}

fn add_namespace(place: &Place, host: &str) -> Result<()> {
    let namespace = place.namespace(host);
    exec::output(Command::new("ip").args(["netns", "add", &namespace]))?;
    Ok(())
}

/// Hosts route: pods are behind nodes.
fn forward(place: &Place, host: &str) -> Result<()> {
    let mut sysctl = place.at(host, "sysctl");
    sysctl.args([
        "-qw",
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
    ]);
    exec::output(&mut sysctl)?;
    Ok(())
}

/// The router chooses a node for each flow, and tells nobody a shorter way.
fn route(place: &Place) -> Result<()> {
    forward(place, SWITCH)?;
    let mut sysctl = place.at(SWITCH, "sysctl");
    sysctl.args([
        "-qw",
        "net.ipv4.fib_multipath_hash_policy=1",
        "net.ipv6.fib_multipath_hash_policy=1",
        "net.ipv4.conf.all.send_redirects=0",
        "net.ipv4.conf.default.send_redirects=0",
    ]);
    exec::output(&mut sysctl)?;
    Ok(())
}

/// Runs commands of `ip` in a host's namespace.
fn batch(place: &Place, host: &str, commands: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-netns", &place.namespace(host), "-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip")?;
    if let Some(input) = ip.stdin.as_mut() {
        input
            .write_all(commands.as_bytes())
            .context("tell ip what to do")?;
    }
    let output = ip.wait_with_output().context("wait for ip")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip in {host}: {errors}{commands}");
    Ok(())
}

/// The bridge, with the address of the way out.
fn switch(spec: &Spec) -> String {
    let mut text = "link set lo up\nlink add br0 type bridge\nlink set br0 up\n".to_owned();
    for family in spec.families.list() {
        let gateway = addresses::gateway(family);
        let _ = writeln!(text, "{}", address(family, gateway, "br0"));
        if matches!(spec.cni, Cni::Ptp | Cni::Bridge) {
            text.push_str(&pod_routes(spec, family, None));
        }
    }
    text
}

/// The router's device to the host outside.
fn way_out(place: &Place, spec: &Spec) -> String {
    let namespace = place.namespace(OUTSIDE);
    let mut text = format!(
        "link add {OUTSIDE} type veth peer name eth0 netns {namespace}\n\
         link set {OUTSIDE} up\n"
    );
    for family in spec.families.list() {
        let length = addresses::outside_network(family).length;
        let gateway = addresses::outside_gateway(family);
        let _ = writeln!(text, "{}", on_link(family, gateway, length, OUTSIDE));
    }
    text
}

fn outside(spec: &Spec) -> String {
    let mut text = "link set lo up\nlink set eth0 up\n".to_owned();
    for family in spec.families.list() {
        let length = addresses::outside_network(family).length;
        let host = addresses::outside(family);
        let gateway = addresses::outside_gateway(family);
        let _ = writeln!(text, "{}", on_link(family, host, length, "eth0"));
        let _ = writeln!(text, "route add default via {gateway}");
    }
    text
}

fn cable(place: &Place, host: &str) -> String {
    let namespace = place.namespace(host);
    format!(
        "link add {host} type veth peer name eth0 netns {namespace}\n\
         link set {host} master br0 up\n"
    )
}

/// Returns the devices, addresses and routes of a node or the control plane.
fn settings(spec: &Spec, own: Option<u8>) -> String {
    let mut text = "link set lo up\nlink set eth0 up\n".to_owned();
    for family in spec.families.list() {
        let host = match own {
            Some(number) => addresses::node(family, number),
            None => addresses::control_plane(family),
        };
        let _ = writeln!(text, "{}", address(family, host, "eth0"));
        let gateway = addresses::gateway(family);
        let _ = writeln!(text, "route add default via {gateway}");
        let routed = match spec.cni {
            Cni::Ptp | Cni::Bridge => true,
            // The control plane is no part of flannel's network.
            Cni::FlannelHostGw | Cni::FlannelVxlan => own.is_none(),
            Cni::Macvlan => false,
        };
        if routed {
            text.push_str(&pod_routes(spec, family, own));
        }
    }
    if let (Cni::Macvlan, Some(number)) = (spec.cni, own) {
        text.push_str(&shim(spec, number));
    }
    text
}

/// Routes to the pods of all nodes but one.
fn pod_routes(spec: &Spec, family: Family, own: Option<u8>) -> String {
    let mut text = String::new();
    for (number, _) in spec.nodes().filter(|(number, _)| Some(*number) != own) {
        let pods = addresses::pods(family, spec.cni, number);
        let node = addresses::node(family, number);
        let _ = writeln!(text, "route add {pods} via {node}");
    }
    text
}

/// The device by which a node and its own pods see each other where these have
/// devices on the node's uplink, which does not connect them with the node.
fn shim(spec: &Spec, number: u8) -> String {
    let mut text =
        "link add shim0 link eth0 type macvlan mode bridge\nlink set shim0 up\n".to_owned();
    for family in spec.families.list() {
        let node = addresses::node(family, number);
        let pods = addresses::pods(family, spec.cni, number);
        let once_more = match family {
            Family::V4 => format!("address add {node}/32 dev shim0"),
            Family::V6 => format!("address add {node}/128 dev shim0 nodad"),
        };
        let _ = writeln!(text, "{once_more}\nroute add {pods} dev shim0 src {node}");
    }
    text
}

fn address(family: Family, host: IpAddr, device: &str) -> String {
    on_link(family, host, addresses::underlay(family).length, device)
}

fn on_link(family: Family, host: IpAddr, length: u8, device: &str) -> String {
    // Nobody else has it: there is no need to wait until that is found out.
    let at_once = match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    };
    format!("address add {host}/{length} dev {device}{at_once}")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::cluster::spec::Proxy;

    fn spec(cni: Cni) -> Spec {
        Spec::new(2, "ipv4,ipv6".parse().unwrap(), cni, Proxy::Tandem, &[]).unwrap()
    }

    #[test]
    fn a_node_routes_to_the_pods_of_the_others() {
        let text = settings(&spec(Cni::Ptp), Some(1));
        for line in [
            "address add 172.30.0.11/16 dev eth0",
            "address add fd00:30::b/64 dev eth0 nodad",
            "route add 10.244.2.0/24 via 172.30.0.12",
            "route add fd00:10:244:2::/64 via fd00:30::c",
        ] {
            assert!(text.lines().any(|other| other == line), "{text}");
        }
        assert!(!text.contains("10.244.1.0"), "{text}");
    }

    #[rstest]
    #[case(Cni::FlannelVxlan)]
    #[case(Cni::FlannelHostGw)]
    fn flannel_joins_nodes_but_not_the_control_plane(#[case] cni: Cni) {
        assert!(!settings(&spec(cni), Some(1)).contains("10.244."));
        assert!(settings(&spec(cni), None).contains("route add 10.244.1.0/24 via 172.30.0.11"));
    }

    #[test]
    fn a_node_reaches_its_pods_on_the_underlay() {
        let text = settings(&spec(Cni::Macvlan), Some(2));
        for line in [
            "route add 172.30.2.0/24 dev shim0 src 172.30.0.12",
            "route add fd00:30::2:0/112 dev shim0 src fd00:30::c",
        ] {
            assert!(text.lines().any(|other| other == line), "{text}");
        }
    }
}

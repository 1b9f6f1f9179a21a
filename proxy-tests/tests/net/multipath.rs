//! Nodes with two uplinks and a default route over both of them.

use std::{fmt::Write, net::SocketAddr};

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Lab, Pod, Service, Topology,
    addressing::{host_length, lan, pod, pod_cidr, subnet_length},
    eventually,
    host::Addresses,
    manifest::Endpoint,
    traffic::{PATIENCE, Server, ask_tcp, ask_udp},
};
use rstest::rstest;

/// The next hop of a flow depends on its addresses, so a wrong one shows for
/// some endpoints only.
const ENDPOINTS: u8 = 16;
/// The number of the first one on its node.
const FIRST: u8 = 100;
/// The second LAN segment.
const SECOND: u8 = 1;

/// The gateways of the two uplinks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum NextHops {
    /// Addresses of the route's family.
    Global,
    /// IPv6 link-local addresses, also of the IPv4 route (RFC 5549).
    LinkLocal,
}

/// Processes of the node reach all remote endpoints in packets, whichever uplink
/// routing chooses for them, and go on to when one uplink is lost.
#[rstest]
fn processes_of_the_node_reach_all_endpoints(
    #[values(NextHops::Global, NextHops::LinkLocal)] next_hops: NextHops,
    #[values("0", "1")] hash_policy: &str,
) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    add_uplink(&lab, next_hops)?;
    node.sysctls(&[
        ("net/ipv4/fib_multipath_hash_policy", hash_policy),
        ("net/ipv6/fib_multipath_hash_policy", hash_policy),
    ])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let (services, _server) = endpoints(&lab, &remote)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let all_answer = || {
        for &family in lab.families().list() {
            for service in &services {
                let frontend = service.at(family, ECHO_PORT);
                node.run(|| ask_tcp(frontend))
                    .with_context(|| format!("TCP to {frontend}"))?;
                node.run(|| ask_udp(frontend, 64))
                    .with_context(|| format!("UDP to {frontend}"))?;
            }
        }
        Ok(())
    };
    all_answer()?;
    node.ip("link set eth1 down")?;
    eventually("all go by the other uplink", PATIENCE, all_answer)
}

/// Joins the first node to a second LAN segment by `eth1`, and leaves it only a
/// default route over both segments.
fn add_uplink(lab: &Lab, next_hops: NextHops) -> Result<()> {
    let node = &lab.nodes[0];
    let mut switch = format!(
        "link add lan2 type bridge\n\
         link set lan2 up\n\
         link add second type veth peer name eth1 netns {}\n\
         link set second master lan2 up\n\
         addr add fe80::a/64 dev lan nodad\n\
         addr add fe80::b/64 dev lan2 nodad\n",
        node.netns()
    );
    let mut uplink = "link set eth1 up\n".to_owned();
    for &family in lab.families().list() {
        let length = subnet_length(family);
        writeln!(
            switch,
            "addr add {}/{length} dev lan2 nodad",
            lan(family, SECOND, 1)
        )?;
        writeln!(
            uplink,
            "addr add {}/{length} dev eth1 nodad",
            lan(family, SECOND, 11)
        )?;
        writeln!(uplink, "route del {}", pod_cidr(family, 2))?;
        let gateways = match next_hops {
            NextHops::Global => {
                [lan(family, 0, 1), lan(family, SECOND, 1)].map(|ip| ip.to_string())
            }
            NextHops::LinkLocal if family == Family::V4 => {
                ["inet6 fe80::a", "inet6 fe80::b"].map(str::to_owned)
            }
            NextHops::LinkLocal => ["fe80::a", "fe80::b"].map(str::to_owned),
        };
        let everything = match family {
            Family::V4 => "0.0.0.0/0",
            Family::V6 => "::/0",
        };
        let [first, second] = gateways;
        writeln!(
            uplink,
            "route del {everything}\n\
             route add {everything} nexthop via {first} dev eth0 nexthop via {second} dev eth1",
        )?;
    }
    lab.underlay.switch().ip(&switch)?;
    node.ip(&uplink)
}

/// Gives a pod many addresses, each the endpoint of a Service of its own, and a
/// server at all of them.
fn endpoints(lab: &Lab, pod_of_all: &Pod) -> Result<(Vec<Service>, Server)> {
    let (mut addresses, mut routes) = (String::new(), String::new());
    let (mut services, mut places) = (Vec::new(), Vec::new());
    for number in 1..=ENDPOINTS {
        let own = Addresses::choose(lab.families(), |family| pod(family, 2, FIRST + number));
        for address in own.list() {
            let via = pod_of_all.address(Family::of(address));
            places.push(SocketAddr::new(address, ECHO_TARGET));
            writeln!(
                addresses,
                "addr add {address}/{} dev eth0 nodad",
                host_length(Family::of(address))
            )?;
            writeln!(
                routes,
                "route add {address} via {via} dev {} onlink",
                pod_of_all.node_device()
            )?;
        }
        let endpoint = Endpoint {
            addresses: own,
            ..Endpoint::from(pod_of_all)
        };
        let service =
            Service::echo_as(&format!("echo-{number}"), number, lab.families()).endpoint(endpoint);
        lab.manifests.write(&service)?;
        services.push(service);
    }
    pod_of_all.ip(&addresses)?;
    lab.nodes[1].ip(&routes)?;
    Ok((services, Server::start_at(pod_of_all, &places)?))
}

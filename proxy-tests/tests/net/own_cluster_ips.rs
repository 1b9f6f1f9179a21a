//! Cluster IPs that a node has as addresses of its own.

use std::{net::Ipv6Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Service, Sockets, Topology,
    eventually,
    traffic::{Server, ask_tcp, ask_udp},
};
use rstest::rstest;

/// From a change of addresses to its effect.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);

/// A DNS cache on the node listens at the cluster IP of the cluster's DNS, which is an
/// address of a device of its own: the node's own processes and its pods reach it. Before it
/// listens, and after, they reach the Service's endpoints. What listens on all addresses
/// is not meant.
#[rstest]
fn a_process_that_listens_at_a_cluster_ip_has_its_node(
    #[values(Sockets::Off, Sockets::Host, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let (node, other) = (&lab.nodes[0], &lab.nodes[1]);
    let client = node.add_pod("client")?;
    let [backend, far] = other.add_pods(["backend", "far"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let everywhere = Server::start_at(node, &[(Ipv6Addr::UNSPECIFIED, ECHO_PORT).into()])?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    lab.manifests.write(&service)?;
    node.ip(
        "link add nodelocaldns type veth peer cache-peer\nlink set nodelocaldns up\nlink set cache-peer up",
    )?;
    for family in Family::BOTH {
        let length = match family {
            Family::V4 => "/32",
            Family::V6 => "/128 nodad",
        };
        let ip = service.at(family, ECHO_PORT).ip();
        node.ip(&format!("addr add {ip}{length} dev nodelocaldns nodad"))?;
    }
    let _agents = lab.start_agents(&AgentOptions::with_sockets(sockets))?;
    // Packets of the node's own processes go by the loopback device.
    let clients: [(&Host, bool); 3] = [(node, true), (&client, true), (&far, false)];
    let expect = |listens: bool| -> Result<()> {
        for &family in lab.families().list() {
            let to = service.at(family, ECHO_PORT);
            for (host, is_here) in clients {
                let expected = if listens && is_here {
                    node.name()
                } else {
                    backend.name()
                };
                eventually("the server", FOLLOWED_WITHIN, || {
                    let tcp = host.run(|| ask_tcp(to)).context("TCP")?;
                    let udp = host.run(|| ask_udp(to, 16)).context("UDP")?;
                    for answer in [tcp, udp] {
                        ensure!(answer.server == expected, "{} answers", answer.server);
                    }
                    Ok(())
                })
                .with_context(|| format!("{} to {to}, {listens}", host.name()))?;
            }
        }
        Ok(())
    };
    expect(false)?;
    drop(everywhere);
    let places = Family::BOTH.map(|family| service.at(family, ECHO_PORT));
    let cache = Server::start_at(node, &places)?;
    expect(true)?;
    drop(cache);
    expect(false)
}

//! Devices that real hosts have between them and the network: VLANs, bonds, VRFs and
//! `WireGuard` tunnels. Not every kernel has them.

use std::{fmt::Write, net::SocketAddr};

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Node, Service, Sockets, Topology,
    addressing::{cluster_cidr, lan, public, subnet_length},
    host::Addresses,
    kernel::can_make,
    manifest::Endpoint,
    netns::Netns,
    traffic::{Server, TcpClient, ask_tcp, ask_udp},
};
use rstest::rstest;

const NODE_PORT: u16 = 30_084;
/// The network behind the device, and that of its packets on the wire.
const BEHIND: u8 = 3;
const WIRE: u8 = 4;
/// Numbers of the node and of the other host in both.
const NODE: u8 = 11;
const OTHER: u8 = 100;
/// More than a device's queue holds.
const BULK: usize = 1 << 20;
const WIREGUARD_PORT: u16 = 51_820;
const VRF_TABLE: u32 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Vlan,
    Bond,
    WireGuard,
}

/// Adds a host that has no device yet.
fn add_other(lab: &Lab) -> Result<Host> {
    let netns = Netns::create(&format!("{}-other", lab.id()))?;
    let addresses = Addresses::choose(lab.families(), |family| lan(family, BEHIND, OTHER));
    Host::new("other", netns, None, addresses, lab.families())
}

impl Device {
    /// Makes the device on the node and on a new host, which has no other one, and gives
    /// both an address; nothing if this kernel has no such devices.
    fn join(self, lab: &Lab, node: &Node) -> Result<Option<Host>> {
        let other = add_other(lab)?;
        let (kind, lines) = match self {
            Self::Vlan => ("vlan", "link add dev0 link wire0 type vlan id 7\n"),
            Self::Bond => (
                "bond",
                "link add dev0 type bond mode active-backup miimon 100\n\
                 link set wire0 down\nlink set wire0 master dev0\n\
                 link set wire1 down\nlink set wire1 master dev0\n",
            ),
            Self::WireGuard => ("wireguard", "link add dev0 type wireguard\n"),
        };
        for wire in ["wire0", "wire1"] {
            node.ip(&format!(
                "link add {wire} type veth peer name {wire} netns {}\nlink set {wire} up",
                other.netns()
            ))?;
            other.ip(&format!("link set {wire} up"))?;
        }
        for host in [&**node, &other] {
            if !can_make(host, kind, lines)? {
                return Ok(None);
            }
        }
        if self == Self::WireGuard {
            join_tunnel(node, &other)?;
        }
        for (host, number) in [(&**node, NODE), (&other, OTHER)] {
            let up = "link set wire0 up\nlink set wire1 up\nlink set dev0 up\n";
            host.ip(&[up, &addresses_of(BEHIND, number, "dev0")?].concat())?;
        }
        for &family in lab.families().list() {
            let (pods, node) = (cluster_cidr(family), lan(family, BEHIND, NODE));
            other.ip(&format!("route add {pods} via {node}"))?;
        }
        Ok(Some(other))
    }
}

/// Clients behind the device reach a NodePort of the node's address there, with its
/// backends on the node and on another one; pods and processes of the node reach a backend
/// behind it. Answers come back by it: the other host has no other device.
#[rstest]
fn clients_and_backends_behind_it_are_served(
    #[values(Device::Vlan, Device::Bond, Device::WireGuard)] device: Device,
    #[values(Sockets::Off, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let Some(other) = device.join(&lab, node)? else {
        return Ok(());
    };
    let local = node.add_pod("local")?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let _servers = [
        Server::start(&local, ECHO_TARGET)?,
        Server::start(&remote, ECHO_TARGET)?,
        Server::start(&other, ECHO_TARGET)?,
    ];
    let behind = Endpoint {
        name: "other".to_owned(),
        addresses: other.addresses(),
        ..Endpoint::from(&local)
    };
    let node_ports: [(&Host, Service); 2] = [(&local, 1), (&remote, 2)].map(|(pod, number)| {
        let service = Service::echo_as(pod.name(), number, lab.families())
            .node_port(ECHO_PORT, NODE_PORT + u16::from(number))
            .endpoint(pod);
        (&**pod, service)
    });
    let cluster_ip = Service::echo_as("behind", 3, lab.families()).endpoint(behind);
    for service in node_ports.iter().map(|(_, service)| service) {
        lab.manifests.write(service)?;
    }
    lab.manifests.write(&cluster_ip)?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(sockets))?;

    for &family in lab.families().list() {
        for (number, (backend, _)) in (1..).zip(&node_ports) {
            let to = SocketAddr::new(lan(family, BEHIND, NODE), NODE_PORT + number);
            reach(&other, to, backend)?;
        }
        for client in [&*local, &**node] {
            reach(client, cluster_ip.at(family, ECHO_PORT), &other)?;
        }
    }
    Ok(())
}

/// A client whose packets come in by a device in a VRF, which has routes to the node's
/// pods, reaches an external IP. NodePorts at addresses in a VRF are not served.
#[rstest]
fn clients_in_a_vrf_reach_external_ips() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let node = &lab.nodes[0];
    let other = add_other(&lab)?;
    if !can_make(
        node,
        "vrf",
        &format!("link add vrf0 type vrf table {VRF_TABLE}\nlink set vrf0 up\n"),
    )? {
        return Ok(());
    }
    node.ip(&format!(
        "link add dev0 type veth peer name dev0 netns {}\n\
         link set dev0 master vrf0\nlink set dev0 up\n{}",
        other.netns(),
        addresses_of(BEHIND, NODE, "dev0")?
    ))?;
    other.ip(&["link set dev0 up\n", &addresses_of(BEHIND, OTHER, "dev0")?].concat())?;
    let local = node.add_pod("local")?;
    let _server = Server::start(&local, ECHO_TARGET)?;
    let external = Addresses::choose(lab.families(), |family| public(family, 5));
    let service = Service::echo(lab.families())
        .external_ips(external)
        .endpoint(&local);
    lab.manifests.write(&service)?;
    // Routes lead from one table to the other.
    for &family in lab.families().list() {
        let (pod, client) = (local.address(family), lan(family, BEHIND, OTHER));
        let device = local.node_device();
        node.ip(&format!(
            "route add {pod} dev {device} table {VRF_TABLE}\nroute add {client} dev dev0"
        ))?;
        let (to, gateway) = (public(family, 5), lan(family, BEHIND, NODE));
        other.ip(&format!("route add {to} via {gateway}"))?;
    }
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        reach(&other, (public(family, 5), ECHO_PORT).into(), &local)?;
    }
    Ok(())
}

/// The server answers, over both protocols, and takes and sends much.
fn reach(client: &Host, to: SocketAddr, server: &Host) -> Result<()> {
    let context = || format!("{} to {to}, at {}", client.name(), server.name());
    client.run(|| {
        assert_eq!(ask_tcp(to).with_context(context)?.server, server.name());
        assert_eq!(ask_udp(to, 64).with_context(context)?.server, server.name());
        TcpClient::to(to)
            .connect()
            .and_then(|connection| connection.download(BULK))
            .with_context(context)
    })
}

/// Lines that give a device of the host with this number an address of each family.
fn addresses_of(segment: u8, number: u8, device: &str) -> Result<String> {
    let mut batch = String::new();
    for family in Family::BOTH {
        let (address, length) = (lan(family, segment, number), subnet_length(family));
        writeln!(batch, "addr add {address}/{length} dev {device} nodad")?;
    }
    Ok(batch)
}

/// Tells the ends of a `WireGuard` tunnel of each other.
fn join_tunnel(node: &Host, other: &Host) -> Result<()> {
    let ends = [(node, NODE), (other, OTHER)];
    let mut keys = Vec::new();
    for (host, number) in ends {
        host.ip(&addresses_of(WIRE, number, "wire0")?)?;
        let private = host.exec("wg", &["genkey"])?;
        let public = host.feed("wg", &["pubkey"], &private)?;
        keys.push((private, public));
    }
    for (index, (host, _)) in ends.into_iter().enumerate() {
        let peer = 1 - index;
        let endpoint = SocketAddr::new(lan(Family::V4, WIRE, ends[peer].1), WIREGUARD_PORT);
        let arguments = [
            "set",
            "dev0",
            "listen-port",
            &WIREGUARD_PORT.to_string(),
            "private-key",
            "/proc/self/fd/0",
            "peer",
            keys[peer].1.trim(),
            "allowed-ips",
            "0.0.0.0/0,::/0",
            "endpoint",
            &endpoint.to_string(),
        ];
        host.feed("wg", &arguments, &keys[index].0)?;
    }
    Ok(())
}

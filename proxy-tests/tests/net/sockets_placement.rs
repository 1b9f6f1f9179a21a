//! The processes that the socket programs serve, and other programs beside ours.

use std::{fmt::Write, io::ErrorKind, sync::Arc};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, Family, Host, Lab, Node, PodNetwork, Sockets, Topology, Wiring,
    addressing,
    agent::{self, Agent},
    cgroup::Cgroup,
    eventually,
    foreign::PortGuard,
    netns::Netns,
    traffic::{PATIENCE, TcpClient, UdpTalker, ask_tcp, ask_udp},
};
use rstest::rstest;

/// A pod on macvlan: its packets never cross a attached device of its node, so
/// nothing but its calls can be translated.
#[test]
fn macvlan_pods_reach_services() -> Result<()> {
    let lab = Lab::start(Topology {
        nodes: 2,
        wiring: Wiring::RoutedVeth,
        pod_network: PodNetwork::Routes,
        ..Topology::ONE_NODE
    })?;
    let [node, other] = &lab.nodes[..] else {
        unreachable!("two nodes were asked for");
    };
    let backend = other.add_pod("backend")?;
    let service = lab.serve([&backend])?;
    let client = macvlan_pod(&lab, node, other)?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    for family in Family::BOTH {
        let frontend = service.at(family, ECHO_PORT);
        client.run(|| -> Result<()> {
            let connection = TcpClient::to(frontend).connect().context("TCP")?;
            assert_eq!(connection.answer.server, "backend");
            assert_eq!(connection.answer.client.ip(), client.address(family));
            assert_eq!(connection.peer_addr()?, frontend);
            ask_udp(frontend, 64).context("connected UDP")?;
            let (_, source) = UdpTalker::new(family)?.ask(frontend).context("UDP")?;
            assert_eq!(source, frontend);
            Ok(())
        })?;
    }
    assert_eq!(agent::flows_opened(node)?, 0);
    Ok(())
}

/// A host on the nodes' LAN by a macvlan device of `node`'s uplink, with routes
/// to the pods of `other` and to nothing else.
fn macvlan_pod(lab: &Lab, node: &Node, other: &Node) -> Result<Host> {
    let netns = Netns::create(&format!("{}-macvlan", lab.id()))?;
    let addresses = lab.underlay.address_of(60);
    let cgroup = Some(Arc::clone(node.cgroup()));
    let pod = Host::new("macvlan", netns, cgroup, addresses, lab.families())?;
    node.ip(&format!(
        "link add link eth0 name eth1 netns {} type macvlan mode bridge",
        pod.netns()
    ))?;
    let mut batch = String::from("link set eth1 up\n");
    for &family in lab.families().list() {
        let (address, length) = (pod.address(family), addressing::subnet_length(family));
        writeln!(batch, "addr add {address}/{length} dev eth1 nodad")?;
        let pods = addressing::pod_cidr(family, other.index());
        writeln!(batch, "route add {pods} via {}", other.address(family))?;
    }
    pod.ip(&batch)?;
    Ok(pod)
}

/// Others' programs on the same cgroup go on forbidding what they forbid,
/// whoever came first, also when ours are swapped or go.
#[rstest]
fn foreign_programs_keep_running(#[values(true, false)] foreign_first: bool) -> Result<()> {
    const FORBIDDEN: u16 = 9999;
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let options = AgentOptions::with_sockets(Sockets::All);
    let cgroup = node.cgroup().path();

    let expect = |served: bool| -> Result<()> {
        for family in Family::BOTH {
            let denied = client.run(|| TcpClient::to(backend.at(family, FORBIDDEN)).connect());
            let denied = denied.err().map(|error| error.kind());
            assert_eq!(denied, Some(ErrorKind::PermissionDenied), "{family}");
            if served {
                client.run(|| ask_tcp(service.at(family, ECHO_PORT)))?;
            }
        }
        Ok(())
    };
    let mut guard = None;
    if foreign_first {
        guard = Some(PortGuard::attach(cgroup, FORBIDDEN)?);
    }
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    let _guard = match guard {
        Some(guard) => guard,
        None => PortGuard::attach(cgroup, FORBIDDEN)?,
    };
    expect(true)?;
    agent.crash()?;
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    expect(true)?;
    assert_eq!(agent::flows_opened(node)?, 0);
    assert!(agent.terminate()?.success());
    agent::command(node, &["cleanup"])?;
    expect(false)
}

/// Processes in a cgroup that the operator took out go by packets, from the
/// moment that the cgroup is there; the others do not.
#[test]
fn excluded_cgroups_go_by_packets() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let early = node.cgroup().create_within("early-mesh")?;
    let options = AgentOptions {
        arguments: ["--sockets-exclude-cgroup", "*-mesh,late/sidecar-*"]
            .map(str::to_owned)
            .into(),
        ..AgentOptions::with_sockets(Sockets::All)
    };
    let _agents = lab.start_agents(&options)?;
    let late = node.cgroup().create_within("late")?;
    let sidecar = late.create_within("sidecar-1")?;
    let below = sidecar.create_within("container")?;

    let flows_of = |cgroup: Option<&Cgroup>, family| {
        client.run(|| -> Result<u64> {
            if let Some(cgroup) = cgroup {
                cgroup.enter()?;
            }
            let before = agent::flows_opened(node)?;
            ask_tcp(service.at(family, ECHO_PORT))?;
            ask_udp(service.at(family, ECHO_PORT), 64)?;
            Ok(agent::flows_opened(node)? - before)
        })
    };
    for family in Family::BOTH {
        for cgroup in [&early, &sidecar, &below] {
            eventually("packets are translated", PATIENCE, || {
                let found = flows_of(Some(cgroup), family)?;
                ensure!(found == 2, "{}: {found} flows", cgroup.path().display());
                Ok(())
            })?;
        }
        for cgroup in [None, Some(&late)] {
            assert_eq!(flows_of(cgroup, family)?, 0, "{cgroup:?}");
        }
    }
    Ok(())
}

/// An agent that is started again with another mode serves by it.
#[test]
fn the_mode_can_be_changed() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;

    for (sockets, pod_flows, host_flows) in [
        (Sockets::All, 0, 0),
        (Sockets::Host, 2, 0),
        (Sockets::Off, 2, 2),
        (Sockets::All, 0, 0),
    ] {
        let agent = Agent::start(node, &lab, &AgentOptions::with_sockets(sockets))?;
        agent.wait_ready()?;
        for family in Family::BOTH {
            let frontend = service.at(family, ECHO_PORT);
            for (host, expected) in [(&*client, pod_flows), (&**node, host_flows)] {
                let before = agent::flows_opened(node)?;
                host.run(|| ask_tcp(frontend))?;
                host.run(|| ask_udp(frontend, 64))?;
                let found = agent::flows_opened(node)? - before;
                assert_eq!(found, expected, "{sockets:?} {family} {}", host.name());
            }
        }
        assert!(agent.terminate()?.success());
    }
    Ok(())
}

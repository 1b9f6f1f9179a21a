//! The lab itself: in every topology, traffic flows without Tandem. When one
//! of these fails, so does everything else, and not because of the datapath.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use proxy_tests::{
    Families, Lab, PodNetwork, Topology, UnderlayKind, Wiring,
    traffic::{
        ConnectLoad, Heartbeat, Server, TcpClient, UdpClient, ask_tcp, ask_udp_patiently, ping,
    },
};
use rstest::rstest;

const PORT: u16 = 8080;

/// Pods of one node and of two talk to each other, with their own addresses.
#[rstest]
fn pods_reach_each_other(
    #[values(Families::Dual, Families::V4Only, Families::V6Only)] families: Families,
    #[values(Wiring::RoutedVeth, Wiring::Bridge)] wiring: Wiring,
    #[values(PodNetwork::Routes, PodNetwork::Vxlan)] pod_network: PodNetwork,
    #[values(UnderlayKind::Lan, UnderlayKind::Routed { mtu: 1400 })] underlay: UnderlayKind,
) -> Result<()> {
    let lab = Lab::start(Topology {
        families,
        nodes: 2,
        underlay,
        pod_network,
        wiring,
        masquerade: true,
        drop_invalid: true,
        ..Topology::default()
    })?;
    let [client, neighbour] = lab.nodes[0].add_pods(["client", "neighbour"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    for server in [&neighbour, &remote] {
        let _server = Server::start(server, PORT)?;
        for &family in families.list() {
            let target = server.at(family, PORT);
            let context = || format!("{} {target}", server.name());
            let answer = client.run(|| ask_tcp(target)).with_context(context)?;
            assert_eq!(answer.client.ip(), client.address(family));
            assert_eq!(answer.local, target);
            let answer = client
                .run(|| ask_udp_patiently(target, 2000))
                .with_context(context)?;
            assert_eq!(answer.client.ip(), client.address(family));
            assert_eq!(answer.server, server.name());
            client
                .run(|| ping(target.ip(), Duration::from_secs(1)))
                .with_context(context)?;
        }
    }
    Ok(())
}

/// Nodes, external clients and pods reach each other, and large transfers
/// pass whatever the path's MTU is.
#[rstest]
#[case::routes(Topology::ROUTED)]
#[case::vxlan(Topology::FLANNEL)]
#[case::narrow(Topology { underlay: UnderlayKind::Routed { mtu: 1280 }, ..Topology::ROUTED })]
fn hosts_reach_each_other(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let pod = lab.nodes[1].add_pod("pod")?;
    let _server = Server::start(&pod, PORT)?;
    for &family in topology.families.list() {
        for client in [&*lab.nodes[0], &lab.external] {
            let target = pod.at(family, PORT);
            let context = || format!("{} to {target}", client.name());
            client
                .run(|| TcpClient::to(target).connect()?.upload(5_000_000))
                .with_context(context)?;
            client
                .run(|| TcpClient::to(target).connect()?.download(5_000_000))
                .with_context(context)?;
        }
    }
    Ok(())
}

/// A narrow link is found out by those who do not fragment.
#[test]
fn path_mtu_is_discovered() -> Result<()> {
    let topology = Topology {
        nodes: 2,
        underlay: UnderlayKind::Routed { mtu: 1400 },
        ..Topology::default()
    };
    let lab = Lab::start(topology)?;
    let client = lab.nodes[0].add_pod("client")?;
    let server = lab.nodes[1].add_pod("server")?;
    let _server = Server::start(&server, PORT)?;
    for &family in topology.families.list() {
        client.run(|| -> Result<()> {
            let socket = UdpClient::connect(server.at(family, PORT))?;
            socket.do_not_fragment()?;
            socket.keep_errors()?;
            socket.send(&[0; 1440])?;
            assert_eq!(socket.path_error()?.info, 1400);
            assert_eq!(socket.path_mtu()?, 1400);
            Ok(())
        })?;
    }
    Ok(())
}

/// Without anything in between, steady traffic under load loses nothing: what
/// a test finds lost is lost by what it tests.
#[test]
fn steady_traffic_loses_nothing() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let [client, server] = lab.nodes[0].add_pods(["client", "server"])?;
    let _server = Server::start(&server, PORT)?;
    let (mut beats, mut loads) = (Vec::new(), Vec::new());
    for &family in lab.families().list() {
        let target = server.at(family, PORT);
        beats.push(Heartbeat::udp(&client, target, Duration::from_millis(1))?);
        beats.push(Heartbeat::tcp(&client, target, Duration::from_millis(1))?);
        loads.push(ConnectLoad::tcp(&client, target));
        loads.push(ConnectLoad::udp(&client, target));
    }
    thread::sleep(Duration::from_secs(2));
    for load in loads {
        let report = load.stop()?;
        assert!(report.failures.is_empty(), "{report:?}");
    }
    for beat in beats {
        let report = beat.stop()?;
        assert!(report.sent > 100 && report.lost.is_empty(), "{report:?}");
    }
    Ok(())
}

/// A lab must not cost more than the test it serves.
#[test]
fn a_lab_is_set_up_quickly_and_leaves_nothing() -> Result<()> {
    let start = Instant::now();
    let lab = Lab::start(Topology {
        nodes: 2,
        ..Topology::default()
    })?;
    let pods = lab.nodes[0].add_pods(["a", "b", "c"])?;
    let took = start.elapsed();
    // Alone it takes a tenth of this.
    assert!(took < Duration::from_secs(2), "{took:?}");
    let (id, cgroup) = (lab.id().to_owned(), lab.nodes[0].cgroup().path().to_owned());
    let scratch = lab.scratch.path().to_owned();
    assert!(cgroup.exists());

    drop((pods, lab));
    let left = std::fs::read_dir("/run/netns")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(&format!("{id}-")))
        .collect::<Vec<_>>();
    assert!(left.is_empty(), "{left:?}");
    assert!(!cgroup.exists() && !scratch.exists());
    println!("a lab of two nodes and three pods took {took:?}");
    Ok(())
}

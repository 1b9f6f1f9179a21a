//! Large transfers and odd datagrams arrive as they were sent.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, PodNetwork, Service, Topology, Wiring,
    traffic::{Server, TcpClient, UdpClient, ask_udp_patiently},
};
use rstest::rstest;

const MEGABYTES: usize = 50;

/// One Service for a backend on the client's node and one for a backend on the
/// other node.
struct Scene {
    client: proxy_tests::Pod,
    _backends: [proxy_tests::Pod; 2],
    _servers: Vec<Server>,
    services: [Service; 2],
}

impl Scene {
    fn set(lab: &Lab) -> Result<Self> {
        let [client, local] = lab.nodes[0].add_pods(["client", "local"])?;
        let remote = lab.nodes[1].add_pod("remote")?;
        let backends = [local, remote];
        let servers = Server::start_all(&backends, ECHO_TARGET)?;
        let [near, far] = [(1, &backends[0]), (2, &backends[1])].map(|(number, pod)| {
            Service::echo_as(pod.name(), number, lab.families()).endpoint(pod)
        });
        lab.manifests.write(&near)?;
        lab.manifests.write(&far)?;
        Ok(Self {
            client,
            _backends: backends,
            _servers: servers,
            services: [near, far],
        })
    }
}

/// 50 MB each way, both families at the same time.
#[rstest]
#[case::routed_veth(Topology { drop_invalid: true, ..Topology::ROUTED })]
#[case::bridge(Topology { wiring: Wiring::Bridge, drop_invalid: true, ..Topology::ROUTED })]
#[case::flannel(Topology { drop_invalid: true, ..Topology::FLANNEL })]
#[case::vxlan_veth(Topology { pod_network: PodNetwork::Vxlan, ..Topology::ROUTED })]
fn large_transfers_arrive_intact(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let scene = Scene::set(&lab)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for service in &scene.services {
        thread::scope(|scope| {
            let transfers = Family::BOTH.map(|family| {
                let client = &*scene.client;
                scope.spawn(move || transfer(client, service, family))
            });
            transfers
                .into_iter()
                .try_for_each(|transfer| match transfer.join() {
                    Ok(outcome) => outcome,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
        })?;
    }
    Ok(())
}

fn transfer(client: &Host, service: &Service, family: Family) -> Result<()> {
    let frontend = service.at(family, ECHO_PORT);
    let context = |way| move || format!("{family}, {}, {way}", service.name());
    client.run(|| -> Result<()> {
        let length = MEGABYTES << 20;
        TcpClient::to(frontend)
            .connect()?
            .upload(length)
            .with_context(context("up"))?;
        TcpClient::to(frontend)
            .connect()?
            .download(length)
            .with_context(context("down"))
    })
}

/// Datagrams that need fragments both ways; datagrams cut by the kernel
/// (`UDP_SEGMENT`); datagrams without checksum.
#[rstest]
#[case::routed_veth(Topology::ROUTED)]
#[case::routed_veth_conntrack(Topology { drop_invalid: true, ..Topology::ROUTED })]
#[case::bridge(Topology { wiring: Wiring::Bridge, ..Topology::ROUTED })]
#[case::bridge_netfilter(Topology { wiring: Wiring::Bridge, bridge_netfilter: true, drop_invalid: true, ..Topology::ROUTED })]
#[case::flannel(Topology::FLANNEL)]
fn odd_datagrams_arrive_intact(#[case] topology: Topology) -> Result<()> {
    let lab = Lab::start(topology)?;
    let scene = Scene::set(&lab)?;
    let _agents = lab.start_agents(&AgentOptions::default())?;
    for &family in lab.families().list() {
        for service in &scene.services {
            let frontend = service.at(family, ECHO_PORT);
            let context = |what| move || format!("{family}, {}, {what}", service.name());
            scene.client.run(|| -> Result<()> {
                for length in [1, 2000, 8000, 30_000] {
                    ask_udp_patiently(frontend, length)
                        .with_context(|| format!("{length} bytes"))
                        .with_context(context("fragments"))?;
                }
                segments(&UdpClient::connect(frontend)?).with_context(context("segments"))?;
                if family == Family::V4 {
                    let socket = UdpClient::connect(frontend)?;
                    socket.send_without_checksum()?;
                    socket
                        .ask(b"unchecked")
                        .with_context(context("no checksum"))?;
                    socket
                        .ask(&[3; 2000])
                        .with_context(context("fragments, no checksum"))?;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// One system call, ten datagrams, ten answers from one server.
fn segments(socket: &UdpClient) -> Result<()> {
    const SIZE: u16 = 1200;
    socket.send_segments(SIZE)?;
    socket.set_patience(Duration::from_secs(1))?;
    let payload: Vec<u8> = (0..10).flat_map(|number| [number; SIZE as usize]).collect();
    socket.send(&payload)?;
    let mut echoes = (0..10)
        .map(|_| Ok(socket.receive()?.1))
        .collect::<Result<Vec<_>>>()?;
    echoes.sort();
    assert_eq!(echoes.concat(), payload);
    Ok(())
}

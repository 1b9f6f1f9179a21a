//! The basic traffic with each way to attach the programs.

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, ECHO_PORT, Lab, Topology,
    kernel::can_attach,
    traffic::{TcpClient, ask_tcp, ask_udp},
};
use rstest::rstest;

/// Pods, the node's processes and clients outside reach backends on both nodes.
#[rstest]
fn services_work(
    #[values("tcx", "clsact")] attach: &str,
    #[values(Topology::ROUTED, Topology::FLANNEL)] topology: Topology,
) -> Result<()> {
    if !can_attach(attach) {
        return Ok(());
    }
    let lab = Lab::start(topology)?;
    let [client, local] = lab.nodes[0].add_pods(["client", "local"])?;
    let remote = lab.nodes[1].add_pod("remote")?;
    let backends = [local, remote];
    let service = lab.serve(&backends)?;
    let _agents = lab.start_agents(&AgentOptions::with(&["--attach", attach]))?;

    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        for host in [&*client, &*lab.nodes[0], &lab.external] {
            let context = |what| move || format!("{family}, {}, {what}", host.name());
            for _ in 0..10 {
                host.run(|| ask_tcp(frontend))
                    .with_context(context("TCP"))?;
                host.run(|| ask_udp(frontend, 64))
                    .with_context(context("UDP"))?;
            }
            host.run(|| TcpClient::to(frontend).connect()?.upload(3_000_000))
                .with_context(context("upload"))?;
            host.run(|| TcpClient::to(frontend).connect()?.download(3_000_000))
                .with_context(context("download"))?;
        }
    }
    Ok(())
}

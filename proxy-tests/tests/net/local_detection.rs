//! The modes that tell pods from other clients (S68), by what differs for them: with
//! `externalTrafficPolicy: Local` they reach backends of other nodes, too.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Lab, Policy, Service, Topology, eventually,
    traffic::{Server, ask_tcp, expect_silence},
};
use serde_json::json;

const NODE_PORT: u16 = 30_001;
/// The agent waits ten seconds for the Node object before it warns.
const LIMIT: Duration = Duration::from_secs(30);

/// A Node object without podCIDRs tells of no pod. The agent says so, and when
/// they are there they count.
#[test]
fn missing_node_cidrs_are_warned_of() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let [here, there] = [&lab.nodes[0], &lab.nodes[1]];
    let client = here.add_pod("client")?;
    let backend = there.add_pod("backend")?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    let service = service.node_port(ECHO_PORT, NODE_PORT);
    lab.manifests
        .write(&service.external_policy(Policy::Local))?;
    lab.manifests.write_objects(
        here.name(),
        &[json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": here.name() },
        })],
    )?;
    let options = AgentOptions::with(&["--detect-local-mode", "NodeCIDR"]);
    let agents = lab.start_agents(&options)?;

    eventually("the agent warns", LIMIT, || {
        let log = agents[0].log();
        ensure!(log.contains("the Node object has no podCIDRs"), "{log}");
        Ok(())
    })?;
    for family in Family::BOTH {
        client.run(|| expect_silence(here.at(family, NODE_PORT)))?;
    }
    lab.manifests.write_node(here)?;
    for family in Family::BOTH {
        eventually("pods count as pods", LIMIT, || {
            Ok(client.run(|| ask_tcp(here.at(family, NODE_PORT)))?)
        })?;
    }
    ensure!(
        !agents[1].log().contains("counts as a pod"),
        "warned without need"
    );
    Ok(())
}

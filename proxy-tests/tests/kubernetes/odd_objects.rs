//! Objects that the API server keeps although no client of Kubernetes would read them
//! keep nothing from being served.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, Family, Lab, Topology,
    agent::{Agent, Source},
    eventually,
    kubernetes::{ControlPlane, Namespace, Probe, ServiceRanges},
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(45);

/// A Service whose status has a condition without a time, as clients write it
/// whose times are not set: agents that run and agents that start serve it, and
/// everything else.
#[test]
fn a_condition_without_a_time_keeps_nothing_from_being_served() -> Result<()> {
    let mut lab = Lab::start(Topology::FLANNEL)?;
    let mut control_plane = ControlPlane::prepare(&mut lab, ServiceRanges::V4ThenV6)?;
    control_plane.launch()?;
    control_plane.register_nodes(&lab)?;
    let start_agent = |node: usize| {
        let options = AgentOptions {
            source: Source::Kubeconfig(control_plane.agent_kubeconfig(Family::BOTH[node])?),
            ..AgentOptions::default()
        };
        Agent::start(&lab.nodes[node], &lab, &options)
    };
    let [running, restarted] = [start_agent(0)?, start_agent(1)?];
    let namespace = Namespace::create(&lab, control_plane.kubectl(), "odd")?;
    let clients = [
        namespace.client(0, "client")?,
        namespace.client(1, "client-2")?,
    ];
    let [first, second] = namespace.backends([(0, "first"), (1, "second")])?;
    let reach = |services: &[&str]| -> Result<()> {
        for name in services {
            let service = namespace.service(name)?;
            for client in &clients {
                for family in Family::BOTH {
                    let probe = Probe::new(client, service.at(family, ECHO_PORT)?);
                    probe.reaches(&[&first, &second])?;
                }
            }
        }
        Ok(())
    };
    for name in ["odd", "other"] {
        namespace.apply_echo(name, "ipFamilyPolicy: RequireDualStack")?;
    }
    for agent in [&running, &restarted] {
        eventually("an agent is ready", LIMIT, || agent.wait_ready())?;
    }
    reach(&["odd", "other"])?;

    let condition = json!({
        "type": "Odd", "status": "True", "reason": "Odd", "message": "",
        "lastTransitionTime": null,
    });
    let patch = json!({ "status": { "conditions": [condition] } }).to_string();
    let arguments = [
        "patch",
        "service/odd",
        "--subresource=status",
        "--type=merge",
    ];
    namespace.kubectl(&[&arguments[..], &["--patch", &patch]].concat())?;
    let stored = namespace.kubectl(&["get", "service/odd", "-o", "json"])?;
    ensure!(stored.contains("\"lastTransitionTime\": null"), "{stored}");

    // The agents that run take in what comes after it, and have nothing to say.
    namespace.apply_echo("later", "ipFamilyPolicy: RequireDualStack")?;
    reach(&["odd", "other", "later"])?;
    ensure!(!running.log().contains("WARN"), "{}", running.log());

    // So does one that starts, and has to list it.
    restarted.terminate()?;
    let restarted = start_agent(1)?;
    eventually("an agent is ready", LIMIT, || restarted.wait_ready())?;
    namespace.apply_echo("last", "ipFamilyPolicy: RequireDualStack")?;
    reach(&["odd", "other", "later", "last"])?;
    ensure!(!restarted.log().contains("WARN"), "{}", restarted.log());
    Ok(())
}

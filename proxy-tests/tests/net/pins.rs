//! Pins that somebody removes while an agent runs.

use std::{fs, process::Command, time::Duration};

use anyhow::{Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, Host, Lab, Service, Sockets, Topology,
    agent::{self, Agent},
    eventually,
    traffic::{TcpClient, ask_tcp, ask_udp},
};
use rstest::rstest;

/// From the loss to its repair, well before the next audit.
const REPAIRED_WITHIN: Duration = Duration::from_secs(20);

fn is_served(clients: &[&Host], lab: &Lab, service: &Service) -> Result<()> {
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        for client in clients {
            client.run(|| ask_tcp(frontend))?;
            client.run(|| ask_udp(frontend, 64))?;
        }
    }
    Ok(())
}

/// The agent pins again what it holds. Connections that are open live on where
/// only tables or programs were unpinned, and its end leaves forwarding.
#[rstest]
fn removed_pins_come_back(
    #[values("v2/maps", "v2/programs", "v2/links", "v2")] folder: &str,
    #[values(Sockets::Off, Sockets::All)] sockets: Sockets,
) -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let agent = Agent::start(node, &lab, &AgentOptions::with_sockets(sockets))?;
    agent.wait_ready()?;
    let clients = [&*client, &**node];
    let mut connections = Vec::new();
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        let mut connection = client.run(|| TcpClient::to(frontend).connect())?;
        connection.start_echo()?;
        connections.push(connection);
    }

    let pins = node.pins().pins()?;
    fs::remove_dir_all(node.pins().path().join(folder))?;
    eventually("all pins are there again", REPAIRED_WITHIN, || {
        let found = node.pins().pins()?;
        ensure!(found == pins, "{found:?}");
        ensure!(agent.log().contains("made again"), "nothing is said of it");
        let metrics = agent.metrics()?;
        ensure!(
            metrics.contains("tandem_pins_restored_total 1"),
            "{metrics}"
        );
        Ok(())
    })?;
    if matches!(folder, "v2/maps" | "v2/programs") {
        for connection in &mut connections {
            connection.echo(b"still here")?;
        }
    }
    eventually("served", REPAIRED_WITHIN, || {
        is_served(&clients, &lab, &service)
    })?;
    let status = agent.terminate()?;
    assert!(status.success(), "{status}");
    for _ in 0..3 {
        is_served(&clients, &lab, &service)?;
    }
    Ok(())
}

/// Pins in whose place somebody put other maps are made again at the next audit.
#[test]
fn replaced_pins_are_made_again() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let options = AgentOptions::with(&["--audit-period", "1s"]);
    let agent = Agent::start(node, &lab, &options)?;
    agent.wait_ready()?;
    let before = node.pins().pins()?;
    let maps = node.pins().path().join("v2/maps");
    let [v4, v6, aside] = ["FRONTENDS_V4", "FRONTENDS_V6", "ASIDE"].map(|name| maps.join(name));
    for (from, to) in [(&v4, &aside), (&v6, &v4), (&aside, &v6)] {
        fs::rename(from, to)?;
    }
    eventually("the tables can be read again", REPAIRED_WITHIN, || {
        ensure!(agent.log().contains("made again"), "nothing is said of it");
        let services = agent::command(node, &["get", "services", "-o", "json"])?;
        for &family in lab.families().list() {
            let ip = service.cluster_ip(family).to_string();
            ensure!(services.contains(&ip), "{ip}: {services}");
        }
        Ok(())
    })?;
    let pins = node.pins().pins()?;
    ensure!(pins == before, "{pins:?}");
    agent.terminate()?;
    is_served(&[&client], &lab, &service)
}

/// Pins that go right before the agent ends are restored before it does.
#[test]
fn the_end_restores_pins_first() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    fs::remove_dir_all(node.pins().path().join("v2/maps"))?;
    agent.terminate()?;
    is_served(&[&client], &lab, &service)
}

/// A bpf root that is removed as a whole is made again.
#[test]
fn a_removed_root_is_made_again() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;
    let pins = node.pins().pins()?;
    fs::remove_dir_all(node.pins().path())?;
    eventually("all pins are there again", REPAIRED_WITHIN, || {
        let found = node.pins().pins()?;
        ensure!(found == pins, "{found:?}");
        is_served(&[&client], &lab, &service)
    })
}

/// `cleanup` names the agent that runs and leaves all as it is; forced, it
/// removes everything, and the agent ends.
#[test]
fn cleanup_beside_an_agent_has_to_be_forced() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let agent = Agent::start(node, &lab, &AgentOptions::default())?;
    agent.wait_ready()?;

    let refused = agent::command(node, &["cleanup"]).expect_err("an agent runs");
    let refused = format!("{refused:#}");
    assert!(
        refused.contains("is in use by") && refused.contains("--force"),
        "{refused}"
    );
    is_served(&[&client], &lab, &service)?;

    agent::command(node, &["cleanup", "--force"])?;
    assert!(!node.pins().path().exists(), "{:?}", node.pins().pins()?);
    let status = agent.wait()?;
    assert!(status.success(), "{status}");
    Ok(())
}

/// A bpf file system that is mounted for the agent only goes with it, as under
/// `ip netns exec`: the agent says so when it starts and when it ends, and so it is.
#[test]
fn a_private_bpf_file_system_is_named() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let service = lab.serve([&backend])?;
    let agent = Agent::start_by(node, &lab, || {
        let agent = Agent::command(node, &lab, &AgentOptions::default())?;
        let own = node.pins().path();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c"])
            .arg("mount -t tmpfs none /sys/fs/bpf && exec \"$0\" \"$@\"")
            .arg(agent.get_program());
        for argument in agent.get_args() {
            if argument == own {
                command.arg("/sys/fs/bpf/tandem");
            } else {
                command.arg(argument);
            }
        }
        Ok(command)
    })?;
    agent.wait_ready()?;
    eventually("served", REPAIRED_WITHIN, || {
        is_served(&[&client], &lab, &service)
    })?;
    let named = agent.log();
    ensure!(
        named.contains("is seen in this mount namespace only"),
        "{named}"
    );
    agent.terminate()?;
    let logs: Vec<_> = fs::read_dir(lab.scratch.path())?
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .collect();
    let logs = logs.join("\n");
    ensure!(logs.contains("stopping; forwarding ends with it"), "{logs}");
    ensure!(!logs.contains("forwarding goes on"), "{logs}");
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        eventually("nobody forwards any more", REPAIRED_WITHIN, || {
            ensure!(client.run(|| ask_tcp(frontend)).is_err(), "it is served");
            Ok(())
        })?;
    }
    Ok(())
}

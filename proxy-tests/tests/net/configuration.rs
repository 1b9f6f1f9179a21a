//! The agent reads kube-proxy's configuration, and follows its file.

use std::{fs, os::unix::fs::symlink, path::Path, process::Output, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Lab, Service, Topology,
    addressing::cluster_cidr,
    agent::{Agent, binary},
    eventually,
    traffic::{Heartbeat, Server, ask_tcp},
};
use rstest::rstest;

const KUBEADM: &str = include_str!("../../../proxy-agent/tests/data/config/kubeadm.yaml");
const EKS: &str = include_str!("../../../proxy-agent/tests/data/config/eks.yaml");
const MILLISECOND: Duration = Duration::from_millis(1);
/// The agent looks every few seconds, and reads its tables anew then.
const LIMIT: Duration = Duration::from_mins(1);

/// `ConfigMap`s as distributions make them start unedited, and what has no meaning is named
/// in one line.
#[rstest]
#[case::kubeadm(KUBEADM)]
#[case::eks(EKS)]
fn configurations_of_distributions_start(#[case] text: &str) -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    lab.manifests.write(&service)?;
    let path = lab.scratch.path().join("config.conf");
    fs::write(&path, text)?;
    let agent = Agent::start(node, &lab, &with_config(&path))?;
    agent.wait_ready()?;
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        client.run(|| ask_tcp(frontend))?;
    }
    let log = agent.log();
    let lines = |part: &str| log.lines().filter(|line| line.contains(part)).count();
    ensure!(lines("mean nothing here") <= 1, "{log}");
    ensure!(
        lines("left out: udpIdleTimeout") == usize::from(text == EKS),
        "{log}"
    );
    Ok(())
}

/// A `ConfigMap`'s mount changes by a link that is exchanged. What is new takes effect
/// without a packet lost or a connection broken; what is wrong changes nothing.
#[rstest]
fn a_changed_file_takes_effect_without_harm() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let node = &lab.nodes[0];
    let [client, backend] = node.add_pods(["client", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&backend);
    lab.manifests.write(&service)?;
    let mount = lab.scratch.path().join("mount");
    fs::create_dir(&mount)?;
    symlink("..data/config.conf", mount.join("config.conf"))?;
    let cidrs: Vec<_> = lab
        .families()
        .list()
        .iter()
        .map(|f| cluster_cidr(*f))
        .collect();
    let config = |fields: &str| {
        format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
             clusterCIDR: {}\n{fields}\n",
            cidrs.join(",")
        )
    };
    exchange(&mount, "first", &config(""))?;
    let agent = Agent::start(node, &lab, &with_config(&mount))?;
    agent.wait_ready()?;

    let mut beats = Vec::new();
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        beats.push(Heartbeat::udp(&client, frontend, MILLISECOND)?);
        beats.push(Heartbeat::tcp(&client, frontend, MILLISECOND)?);
    }
    exchange(&mount, "second", &config("oomScoreAdj: 5000"))?;
    logged(&agent, "oomScoreAdj: \"5000\" must be within the range")?;
    exchange(&mount, "third", &config("iptables: {masqueradeAll: true}"))?;
    logged(&agent, "the configuration has changed, starting over")?;
    // The address that the backend sees now is the node's.
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        let own = client.address(family);
        eventually("connections are masqueraded", LIMIT, || {
            let seen = client.run(|| ask_tcp(frontend))?.client;
            ensure!(seen.ip() != own, "still seen from {own}");
            Ok(())
        })?;
    }
    for beat in beats {
        let report = beat.stop()?;
        ensure!(
            report.lost.is_empty() && report.failure.is_none(),
            "{report:?}"
        );
    }
    eventually("the agent is ready again", LIMIT, || agent.ask_ready())?;
    Ok(())
}

/// A wrong value is named with its field, before anything on the node is changed, and the
/// exit code is 1.
#[rstest]
#[case(
    "iptables: {syncPeriod: -1s}",
    "iptables.syncPeriod: \"-1s\" must be greater than 0; "
)]
#[case("detectLocalMode: Pods", "detectLocalMode: \"Pods\" must be ")]
fn a_wrong_value_ends_the_agent(#[case] fields: &str, #[case] expected: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("config.conf");
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    fs::write(&path, format!("{head}{fields}\n"))?;
    let output = run(&["run", "--config", &path.to_string_lossy()])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let error = String::from_utf8(output.stderr)?;
    ensure!(
        error.contains(expected) && error.lines().count() == 1,
        "{error}"
    );
    Ok(())
}

/// `--write-config-to` writes a file and ends; `config show` reads it, and says of each
/// value where it is from.
#[test]
fn what_is_written_is_shown() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("written.yaml");
    let path = path.to_string_lossy();
    let cidr = "--cluster-cidr=10.0.0.0/8,fd00::/8";
    let written = run(&["run", cidr, "--write-config-to", &path])?;
    ensure!(written.status.success(), "{written:?}");
    let shown = run(&[
        "config",
        "show",
        "-o",
        "json",
        "--config",
        &path,
        "--sockets=host",
    ])?;
    ensure!(shown.status.success(), "{shown:?}");
    let report: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
    let row = |name: &str| {
        let rows = report["settings"].as_array().into_iter().flatten();
        rows.clone()
            .find(|row| row["setting"] == name)
            .with_context(|| format!("no {name}"))
    };
    let cidr = row("clusterCIDR")?;
    ensure!(
        cidr["value"] == "10.0.0.0/8,fd00::/8" && cidr["origin"] == "file",
        "{cidr}"
    );
    let sockets = row("sockets.mode")?;
    ensure!(
        sockets["value"] == "host" && sockets["origin"] == "flag",
        "{sockets}"
    );
    let ipvs = row("ipvs.scheduler")?;
    ensure!(ipvs["used"] == "no: Tandem does not use IPVS", "{ipvs}");
    Ok(())
}

fn run(arguments: &[&str]) -> Result<Output> {
    let mut command = std::process::Command::new(binary()?);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    Ok(command.args(arguments).output()?)
}

fn with_config(path: &Path) -> AgentOptions {
    AgentOptions::with(&["--config", &path.to_string_lossy()])
}

/// Puts a file in place as kubelets do: in a new folder, to which a link is exchanged.
fn exchange(mount: &Path, folder: &str, text: &str) -> Result<()> {
    fs::create_dir(mount.join(folder))?;
    fs::write(mount.join(folder).join("config.conf"), text)?;
    symlink(folder, mount.join("..data_tmp"))?;
    fs::rename(mount.join("..data_tmp"), mount.join("..data"))?;
    Ok(())
}

fn logged(agent: &Agent<'_>, text: &str) -> Result<()> {
    eventually(text, LIMIT, || {
        let log = agent.log();
        ensure!(log.contains(text), "{log}");
        Ok(())
    })?;
    Ok(())
}

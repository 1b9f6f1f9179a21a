//! The steps of the demo.

use std::{
    io::stdin,
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use proxy_tests::{
    Agent, Family, Host, Lab, Topology, eventually, interrupt,
    kubernetes::{ControlPlane, ServiceRanges},
};

use crate::{
    Options,
    narrator::{self, Show},
    publisher::{NODE_PORT, Publisher},
    stage::{Stage, agent, curl, map_dump, on},
};

/// From a change to the last node's tables, on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

/// Plays the demo and removes everything.
pub(crate) fn play(options: Options) -> Result<()> {
    narrator::line(
        "Tandem gives Kubernetes Services their addresses, with eBPF, in IPv4 and IPv6 alike.",
    )?;
    narrator::line(
        "All that follows happens in network namespaces; the machine's own network is left alone.",
    )?;

    let mut lab = Lab::start(Topology::FLANNEL)?;
    interrupt::check()?;
    let control_plane = options
        .kubernetes
        .then(|| {
            narrator::line("\nStarting etcd, kube-apiserver and kube-controller-manager ...")?;
            ControlPlane::start(&mut lab, ServiceRanges::V4ThenV6)
        })
        .transpose()?;
    interrupt::check()?;
    let lab = lab;
    let mut stage = Stage::set(&lab)?;
    narrator::step(
        "A cluster",
        "Two nodes, joined as flannel joins them: bridge and VXLAN. Each web server answers\n\
         with its own name and the address it was asked by.",
    )?;
    narrator::show("The hosts:", &stage.table(&lab))?;

    let publisher = Publisher::new(&lab, control_plane.as_ref(), &mut stage)?;
    narrator::step("The agent", "One on each node, started like this:")?;
    let agents = start_agents(&lab, &publisher)?;

    narrator::step("A Service", "SingleStack: it has an IPv4 address only.")?;
    publisher.publish(&stage)?;
    let v4 = publisher.cluster_ip(Family::V4)?;
    await_service(&stage.client, SocketAddr::new(v4, 80))?;
    let curl = curl(&stage.client);
    narrator::run(&format!("{curl} '{}'", url(v4, 80)), Show::All)?;

    narrator::step(
        "The Service becomes dual-stack",
        "PreferDualStack, while everything runs. IPv4 goes on as before, IPv6 begins.",
    )?;
    publisher.make_dual()?;
    let v6 = publisher.cluster_ip(Family::V6)?;
    await_service(&stage.client, SocketAddr::new(v6, 80))?;
    for address in [v4, v6] {
        narrator::run(&format!("{curl} '{}'", url(address, 80)), Show::All)?;
    }

    narrator::step(
        "Fair shares",
        "60 connections in each family, by who answered. All see the client's own address.",
    )?;
    for address in [v4, v6] {
        let command = format!("{curl} '{}[1-60]' | sort | uniq --count", url(address, 80));
        narrator::run(&command, Show::All)?;
    }

    node_port(&lab, &publisher)?;
    tables(&lab)?;
    crash(agents, &curl, [v4, v6])?;

    if options.keep {
        narrator::step(
            "New agents",
            "They adopt the tables and programs they find.",
        )?;
        let agents = start_agents(&lab, &publisher)?;
        keep(&lab, &stage, &publisher, [v4, v6])?;
        drop(agents);
    }
    narrator::line("\nRemoving everything.")?;
    Ok(())
}

fn start_agents<'lab>(lab: &'lab Lab, publisher: &Publisher<'_>) -> Result<Vec<Agent<'lab>>> {
    let mut agents = Vec::new();
    for node in &lab.nodes {
        let options = publisher.agent_options(node)?;
        if agents.is_empty() {
            let command = in_lines(&Agent::command(node, lab, &options)?);
            narrator::show(&format!("$ {} \\", on(node)), &command)?;
        }
        agents.push(Agent::start(node, lab, &options)?);
    }
    for agent in &agents {
        interrupt::check()?;
        agent.wait_ready()?;
    }
    Ok(agents)
}

/// A long command, as it can be typed: each flag on a line of its own.
fn in_lines(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        let separator = if argument.starts_with("--") {
            " \\\n  "
        } else {
            " "
        };
        text.push_str(separator);
        text.push_str(&argument);
    }
    text
}

/// A client outside, and why it is served as it is.
fn node_port(lab: &Lab, publisher: &Publisher<'_>) -> Result<()> {
    narrator::step(
        "A NodePort",
        "Now each node has a port for the Service, too: a host outside the cluster connects to the\n\
         first one. Web servers on that node see who asks, others see the node.",
    )?;
    publisher.add_node_port()?;
    let (node, client) = (&lab.nodes[0], &lab.external);
    for family in Family::BOTH {
        await_service(client, node.at(family, NODE_PORT))?;
        let url = url(node.address(family), NODE_PORT);
        let command = format!("{} '{url}[1-20]' | sort | uniq --count", curl(client));
        narrator::run(&command, Show::All)?;
    }
    narrator::step(
        "Why?",
        "The programs themselves say what they would do with a new connection.",
    )?;
    for family in Family::BOTH {
        let (from, to) = (client.address(family), node.at(family, NODE_PORT));
        let explain = agent(node, &format!("explain --from '{from}' --to '{to}'"))?;
        narrator::run(&format!("{} {explain}", on(node)), Show::All)?;
    }
    Ok(())
}

/// Shows the agent's tables in the kernel.
fn tables(lab: &Lab) -> Result<()> {
    let node = &lab.nodes[0];
    narrator::step(
        "What the first node knows",
        "Services, their backends, and the connections being translated.",
    )?;
    for arguments in [
        "get services",
        "get backends",
        "get flows --family 4",
        "get flows --family 6",
    ] {
        narrator::run(&agent(node, arguments)?, Show::Head(8))?;
    }
    narrator::step(
        "The same in the kernel",
        "The beginning of the maps the programs look up: frontends, backends, flows.",
    )?;
    for family in ["V4", "V6"] {
        for map in ["FRONTENDS", "BACKENDS", "FLOWS"] {
            if let Some(dump) = map_dump(node, &format!("{map}_{family}"))? {
                let excerpt = "tr -s ' \\n' ' ' | fold -s -w 100 | head -n 4";
                narrator::run(&format!("{dump} | {excerpt}"), Show::All)?;
            }
        }
    }
    Ok(())
}

/// The agents go, the Service stays.
fn crash(agents: Vec<Agent<'_>>, curl: &str, addresses: [IpAddr; 2]) -> Result<()> {
    narrator::step(
        "The agents are killed",
        "Programs and maps are pinned: traffic goes on without them, and a new agent takes over\n\
         what it finds.",
    )?;
    for agent in agents {
        agent.crash()?;
    }
    for address in addresses {
        narrator::run(&format!("{curl} '{}'", url(address, 80)), Show::All)?;
    }
    Ok(())
}

/// Waits until the client is served there.
fn await_service(client: &Host, target: SocketAddr) -> Result<()> {
    eventually("the Service is in force", LIMIT, || {
        if interrupt::requested() {
            return Ok(());
        }
        let connect = || TcpStream::connect_timeout(&target, Duration::from_millis(300));
        client.run(connect).map(drop).context("not yet")
    })?;
    interrupt::check()
}

/// Leaves everything up until Enter or Ctrl-C.
fn keep(lab: &Lab, stage: &Stage, publisher: &Publisher<'_>, addresses: [IpAddr; 2]) -> Result<()> {
    let (curl, node) = (curl(&stage.client), &lab.nodes[0]);
    narrator::line("\nEverything stays up. In another shell:\n")?;
    narrator::line(&format!("    ip netns exec {} bash", stage.client.netns()))?;
    for address in addresses {
        narrator::line(&format!("    {curl} '{}'", url(address, 80)))?;
    }
    narrator::line(&format!(
        "    ip netns exec {} tcpdump -ni any tcp port 8080",
        node.netns()
    ))?;
    narrator::line(&format!("    {}", agent(node, "get flows")?))?;
    narrator::line(&format!("    {}", publisher.hint()))?;
    narrator::line("\nEnter or Ctrl-C ends the demo and removes everything.")?;
    let (sender, enter) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        // Without a terminal there is no Enter, only the signal.
        if stdin().read_line(&mut line).is_ok_and(|length| length > 0) {
            let _ = sender.send(());
        }
        loop {
            thread::park();
        }
    });
    loop {
        match enter.recv_timeout(Duration::from_millis(100)) {
            Err(RecvTimeoutError::Timeout) if !interrupt::requested() => {}
            _ => return Ok(()),
        }
    }
}

fn url(address: IpAddr, port: u16) -> String {
    match port {
        // As people write it.
        80 => match address {
            IpAddr::V4(v4) => format!("http://{v4}/"),
            IpAddr::V6(v6) => format!("http://[{v6}]/"),
        },
        _ => format!("http://{}/", SocketAddr::new(address, port)),
    }
}

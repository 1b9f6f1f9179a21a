//! What the demo shows, step by step.

use std::io::stdin;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use proxy_tests::kubernetes::{ControlPlane, ServiceRanges};
use proxy_tests::{Agent, Family, Lab, Topology, eventually};

use crate::narrator::{self, Show};
use crate::publisher::Publisher;
use crate::stage::{Stage, agent_get, map_dump};
use crate::{Options, interrupt};

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
    await_service(&stage, v4)?;
    let curl = stage.curl();
    narrator::run(&format!("{curl} {}", url(v4)), Show::All)?;

    narrator::step(
        "The Service becomes dual-stack",
        "PreferDualStack, while everything runs. IPv4 goes on as before, IPv6 begins.",
    )?;
    publisher.make_dual()?;
    let v6 = publisher.cluster_ip(Family::V6)?;
    await_service(&stage, v6)?;
    for address in [v4, v6] {
        narrator::run(&format!("{curl} {}", url(address)), Show::All)?;
    }

    narrator::step(
        "Fair shares",
        "60 connections in each family, by who answered. All see the client's own address.",
    )?;
    for address in [v4, v6] {
        let command = format!("{curl} '{}[1-60]' | sort | uniq --count", url(address));
        narrator::run(&command, Show::All)?;
    }

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
    let node = &lab.nodes[0];
    narrator::show(
        &format!("$ ip netns exec {} \\", node.netns()),
        &format!(
            "{} run {} \\\n  --hostname-override {} --cluster-cidr 10.244.0.0/16,fd00:10:244::/56 \\\n  \
             --bpf-root {} --cgroup-root {}",
            proxy_tests::agent::binary()?.display(),
            publisher.agent_argument()?,
            node.name(),
            node.pins().path().display(),
            node.cgroup().path().display(),
        ),
    )?;
    let agents = lab
        .nodes
        .iter()
        .map(|node| Agent::start(node, lab, &publisher.agent_options(node)?))
        .collect::<Result<Vec<_>>>()?;
    for agent in &agents {
        interrupt::check()?;
        agent.wait_ready()?;
    }
    Ok(agents)
}

/// What the agent has put into the kernel.
fn tables(lab: &Lab) -> Result<()> {
    let node = &lab.nodes[0];
    narrator::step(
        "What the first node knows",
        "Services, their backends, and the connections being translated.",
    )?;
    for what in [
        "services",
        "backends",
        "flows --family 4",
        "flows --family 6",
    ] {
        narrator::run(&agent_get(node, what)?, Show::Head(8))?;
    }
    narrator::step(
        "The same in the kernel",
        "The beginning of the maps the programs look up: front ends, backends, flows.",
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
        narrator::run(&format!("{curl} {}", url(address)), Show::All)?;
    }
    Ok(())
}

/// Waits until the client's node has the Service.
fn await_service(stage: &Stage, address: IpAddr) -> Result<()> {
    let target = SocketAddr::new(address, 80);
    eventually("the Service is in force", LIMIT, || {
        if interrupt::requested() {
            return Ok(());
        }
        let dial = || std::net::TcpStream::connect_timeout(&target, Duration::from_millis(300));
        stage.client.run(dial).map(drop).context("not yet")
    })?;
    interrupt::check()
}

/// Leaves everything up until Enter or Ctrl-C.
fn keep(lab: &Lab, stage: &Stage, publisher: &Publisher<'_>, addresses: [IpAddr; 2]) -> Result<()> {
    let (curl, node) = (stage.curl(), &lab.nodes[0]);
    narrator::line("\nEverything stays up. In another shell:\n")?;
    narrator::line(&format!("    ip netns exec {} bash", stage.client.netns()))?;
    for address in addresses {
        narrator::line(&format!("    {curl} {}", url(address)))?;
    }
    narrator::line(&format!(
        "    ip netns exec {} tcpdump -ni any tcp port 8080",
        node.netns()
    ))?;
    narrator::line(&format!("    {}", agent_get(node, "flows")?))?;
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

fn url(address: IpAddr) -> String {
    format!(
        "http://{}/",
        match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        }
    )
}

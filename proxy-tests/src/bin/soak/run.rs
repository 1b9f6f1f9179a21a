//! The stage, the clock and the report.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use proxy_tests::{
    AgentOptions, Family, Lab, Sockets, Topology,
    agent::{Agent, Source},
    eventually, interrupt,
    kubernetes::{ControlPlane, Namespace, ServiceRanges},
};

use crate::{churn::Churn, samples::Samples, traffic::Traffic};

/// Time between two changes.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at memory and tables.
const SAMPLE: Duration = Duration::from_secs(15);
/// The agent of the first node ends this often, by turns asked to and killed.
const RESTART_EVERY: u64 = 20;
/// The API server goes this often, and stays away for [`AWAY_FOR`]. Objects are
/// left alone until the agents have found it again, which takes up to a minute as
/// for every client of Kubernetes: what they cannot know is no loss of theirs.
const AWAY_EVERY: u64 = 180;
const AWAY_FOR: u64 = 15;
const FOUND_WITHIN: u64 = 75;
const LIMIT: Duration = Duration::from_mins(1);

/// Lets everything change for this long; returns whether nothing was lost.
pub(crate) fn run(time: Duration) -> Result<bool> {
    let mut lab = Lab::start(Topology::FLANNEL)?;
    let mut control_plane = ControlPlane::start(&mut lab, ServiceRanges::V4ThenV6)?;
    let mut options = Vec::new();
    for family in Family::BOTH {
        options.push(AgentOptions {
            source: Source::Kubeconfig(control_plane.agent_kubeconfig(family)?),
            sockets: Sockets::Host,
            ..AgentOptions::for_many_flows()
        });
    }
    let [first, second] = &lab.nodes[..] else {
        anyhow::bail!("two nodes");
    };
    // The second one runs until the end: its memory tells.
    let mut restarted = Agent::start(first, &lab, &options[0])?;
    let lasting = Agent::start(second, &lab, &options[1])?;
    let namespace = Namespace::create(&lab, control_plane.kubectl(), "soak")?;
    let clients = [
        namespace.client(0, "client")?,
        namespace.client(1, "client-2")?,
    ];
    let kept = namespace.backends([(0, "kept"), (1, "kept-2")])?;
    namespace.apply_echo("steady", "ipFamilyPolicy: RequireDualStack, type: NodePort")?;
    let service = namespace.service("steady")?;
    restarted.wait_ready()?;
    lasting.wait_ready()?;
    eventually("all frontends lead to both backends", LIMIT, || {
        Traffic::is_possible(&lab, &clients, &service, kept.len())
    })?;

    let traffic = Traffic::start(&lab, &clients, &service)?;
    let mut churn = Churn::new(&namespace);
    let mut samples = Samples::default();
    let (started, mut sample_at, mut back_at) = (Instant::now(), Instant::now(), None);
    let (mut restarts, mut outages) = (0_u64, 0_u64);
    for tick in 1.. {
        let now = Instant::now();
        // Ctrl-C ends it early, with a report of what there was.
        if now >= started + time || interrupt::requested() {
            break;
        }
        if tick % RESTART_EVERY == 0 {
            if restarts % 2 == 0 {
                restarted.crash()?;
            } else {
                restarted.terminate()?;
            }
            restarted = Agent::start(first, &lab, &options[0])?;
            restarts += 1;
        }
        if tick % AWAY_EVERY == 0 {
            control_plane.kill_api_server();
            back_at = Some(tick + AWAY_FOR);
            outages += 1;
        }
        if back_at == Some(tick) {
            control_plane.start_api_server()?;
        }
        churn.device(first, tick)?;
        if back_at.is_none_or(|back_at| tick > back_at + FOUND_WITHIN) {
            churn.objects(tick).context("change objects")?;
        }
        if now >= sample_at {
            sample_at = now + SAMPLE;
            let sample = samples.take(&lasting)?;
            println!("{:>6.1} s  {sample}", started.elapsed().as_secs_f64());
        }
        thread::sleep((now + TICK).saturating_duration_since(Instant::now()));
    }
    println!("\n{churn}, {restarts} restarts of an agent, {outages} times without API server");
    println!("\n{samples}");
    let report = traffic.stop()?;
    println!("{report}");
    let warnings = lasting.log().matches(" ERROR ").count();
    println!("errors that the agent logged: {warnings}");
    Ok(report.is_clean())
}

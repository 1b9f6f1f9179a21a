//! One agent at a time writes below a bpf root; others stand by.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use proxy_agent::dataplane::{
    Dataplane,
    mapped::Access,
    pins::Pins,
    tables::{KernelFamily, KernelTables},
};
use proxy_common::family::{V4, V6};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Lab, ManifestDir, Pod, Service, Topology,
    agent::{self, Agent},
    eventually,
    traffic::{ConnectLoad, Heartbeat, Server},
};

/// Time until an agent that stands by or takes over has seen a change, loaded its
/// programs and written all Services.
const TAKEN_OVER_WITHIN: Duration = Duration::from_mins(1);
/// Time until the last change is in force, well before the next audit.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(10);
const BEAT: Duration = Duration::from_millis(2);

/// Services that change all the time, and what they were last told to be.
struct Churn<'lab> {
    manifests: &'lab ManifestDir,
    pods: &'lab [Pod],
    lab: &'lab Lab,
    random: u32,
    now: BTreeMap<u8, BTreeSet<usize>>,
}

impl<'lab> Churn<'lab> {
    const SERVICES: u32 = 40;

    fn new(lab: &'lab Lab, pods: &'lab [Pod]) -> Self {
        Self {
            manifests: &lab.manifests,
            pods,
            lab,
            random: 7,
            now: BTreeMap::new(),
        }
    }

    fn next(&mut self, below: u32) -> u32 {
        self.random = self.random.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        (self.random >> 16) % below
    }

    /// Changes, makes or deletes one Service.
    fn step(&mut self) -> Result<()> {
        let number = u8::try_from(10 + self.next(Self::SERVICES))?;
        let mut service = Service::new(&format!("churn-{number}"), number, self.lab.families())
            .tcp(ECHO_PORT, target(number));
        if self.next(4) == 0 {
            if self.now.remove(&number).is_some() {
                self.manifests.delete(&service)?;
            }
            return Ok(());
        }
        let members: BTreeSet<_> = (0..self.pods.len()).filter(|_| self.next(2) == 0).collect();
        for &member in &members {
            service = service.endpoint(&self.pods[member]);
        }
        self.manifests.write(&service)?;
        self.now.insert(number, members);
        Ok(())
    }

    /// Goes on until told to stop.
    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.step()?;
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Goes on while something happens.
    fn during<T>(&mut self, happening: impl FnOnce() -> Result<T>) -> Result<T> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let churn = scope.spawn(|| self.run(&stop));
            let done = happening();
            stop.store(true, Ordering::Relaxed);
            churn.join().expect("no panic")?;
            done
        })
    }

    /// Waits for the tables of both families to be what they should be.
    fn expect_tables(&self, pins: &Pins) -> Result<()> {
        eventually("the tables are as they should be", IN_FORCE_WITHIN, || {
            self.compare::<V4>(pins, Family::V4)?;
            self.compare::<V6>(pins, Family::V6)
        })
    }

    fn compare<F: KernelFamily>(&self, pins: &Pins, family: Family) -> Result<()> {
        let tables = KernelTables::<F>::open(pins, Access::Read)?.read()?;
        let mut found = BTreeMap::new();
        for (&row, name) in &tables.names {
            let Some(number) = name.service.name().strip_prefix("churn-") else {
                continue;
            };
            let number: u8 = number.parse()?;
            let run = tables.services[row as usize].cluster;
            let slots = &tables.slots[run.first as usize..][..run.count as usize];
            let mut set = BTreeSet::new();
            for &slot in slots {
                let backend = &tables.backends[slot as usize];
                ensure!(
                    backend.service == row,
                    "{}: a slot of {number} leads to a backend of row {}",
                    F::NAME,
                    backend.service
                );
                set.insert(SocketAddr::new(
                    F::ip(backend.addr).into(),
                    backend.port.get(),
                ));
            }
            found.insert(number, set);
        }
        let wanted: BTreeMap<u8, BTreeSet<SocketAddr>> = self
            .now
            .iter()
            .map(|(&number, members)| {
                let pods = members.iter().map(|&member| &self.pods[member]);
                (
                    number,
                    pods.map(|pod| pod.at(family, target(number))).collect(),
                )
            })
            .collect();
        ensure!(found == wanted, "{}: {found:?}, not {wanted:?}", F::NAME);
        Ok(())
    }
}

/// Each Service has a target port of its own, which tells its backends from
/// those of others.
fn target(number: u8) -> u16 {
    8000 + u16::from(number)
}

fn expect_log(agent: &Agent, text: &str) -> Result<()> {
    eventually(text, TAKEN_OVER_WITHIN, || {
        ensure!(agent.log().contains(text), "not said");
        Ok(())
    })
}

/// Services and endpoints change all the time while a second agent starts, and
/// while it ends: the tables are as they should be after both, and traffic
/// notices neither.
#[test]
fn an_overlap_of_agents_loses_nothing() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let pods = node.add_pods(["client", "a", "b", "c"])?;
    let client = &pods[0];
    let _server = Server::start(&pods[1], ECHO_TARGET)?;
    let service = Service::echo(lab.families()).endpoint(&pods[1]);
    lab.manifests.write(&service)?;
    let pins = Pins::new(node.pins().path());
    let options = AgentOptions::for_many_flows();
    let mut churn = Churn::new(&lab, &pods);

    let older = Agent::start(node, &lab, &options)?;
    older.wait_ready()?;
    let (mut beats, mut loads) = (Vec::new(), Vec::new());
    for &family in lab.families().list() {
        let frontend = service.at(family, ECHO_PORT);
        beats.push(Heartbeat::udp(client, frontend, BEAT)?);
        beats.push(Heartbeat::tcp(client, frontend, BEAT)?);
        loads.push(ConnectLoad::tcp(client, frontend));
    }
    let newer = churn.during(|| {
        let newer = Agent::start(node, &lab, &options)?;
        newer.wait_ready()?;
        thread::sleep(Duration::from_secs(3));
        Ok(newer)
    })?;
    churn.expect_tables(&pins)?;
    expect_log(&older, "another agent took over this bpf root")?;
    let check = agent::command(node, &["check"])?;
    let owner = check.lines().find(|line| line.contains("the owner of"));
    assert!(owner.is_some_and(|line| line.starts_with("ok ")), "{check}");
    assert!(!newer.log().contains("repaired"), "{}", newer.log());

    churn.during(|| {
        newer.terminate()?;
        expect_log(&older, "taking over again")
    })?;
    eventually("the older one is ready again", TAKEN_OVER_WITHIN, || {
        let syncs = older.log().matches("first sync done").count();
        ensure!(syncs == 4, "{syncs} first syncs");
        Ok(())
    })?;
    churn.expect_tables(&pins)?;
    assert!(!older.log().contains("repaired"), "{}", older.log());
    for beat in beats {
        let report = beat.stop()?;
        let intact = report.lost.is_empty() && report.failure.is_none();
        assert!(intact && report.sent > 100, "{report:?}");
    }
    for load in loads {
        let report = load.stop()?;
        assert!(report.failures.is_empty(), "{report:?}");
    }
    Ok(())
}

//! Take-over from kube-proxy on a node where it is at work, and back: no flow breaks, and no
//! new one fails.

use std::{io, net::SocketAddr, process::Output, time::Duration};

use anyhow::{Context, Result, ensure};
use proxy_agent::sys::netfilter::conntrack;
use proxy_tests::{
    Agent, AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Host, Lab, Node, Pod, Service, Sockets,
    Topology,
    agent::{self, flows_opened},
    eventually, kube_proxy,
    traffic::{ConnectLoad, OpenFlows, Server, ask_tcp, ask_udp_patiently},
};
use rstest::rstest;

const NODE_PORT: u16 = 30_080;
const PAUSE: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(20);
/// The agent's log lines.
const TAKEN: &str = "all others are ours from now on";
const HOLDS: &str = "kube-proxy is at work on this node";

/// Rules of somebody else that keep netfilter tracking connections, as every network plugin
/// has some.
const TRACKING: &str = "
table inet plugin {
  chain output {
    type filter hook output priority filter; policy accept;
    ct state established,related accept
  }
}
";

/// A node whose Services kube-proxy serves.
struct Scene {
    lab: Lab,
    service: Service,
    client: Pod,
    backends: [Pod; 2],
    _servers: [Server; 2],
}

impl Scene {
    fn start(topology: Topology) -> Result<Self> {
        let lab = Lab::start(topology)?;
        let [client, near] = lab.nodes[0].add_pods(["client", "near"])?;
        let far = lab.nodes[1].add_pod("far")?;
        let servers = [
            Server::start(&near, ECHO_TARGET)?,
            Server::start(&far, ECHO_TARGET)?,
        ];
        let service = Service::echo(lab.families())
            .endpoint(&near)
            .endpoint(&far)
            .node_port(ECHO_PORT, NODE_PORT);
        lab.manifests.write(&service)?;
        let scene = Self {
            lab,
            service,
            client,
            backends: [near, far],
            _servers: servers,
        };
        scene.node().nft(TRACKING)?;
        scene.start_kube_proxy()?;
        Ok(scene)
    }

    fn node(&self) -> &Node {
        &self.lab.nodes[0]
    }

    /// Removes what there is of its table.
    fn remove_kube_proxy(&self) {
        let _ = self.node().nft("delete table ip kube-proxy\n");
        let _ = self.node().nft("delete table ip6 kube-proxy\n");
    }

    fn start_kube_proxy(&self) -> Result<()> {
        self.remove_kube_proxy();
        let [near, far] = &self.backends;
        let rules = kube_proxy::rules(self.node(), &self.service, NODE_PORT, &[near, far]);
        self.node().nft(&rules)
    }

    /// A pod, a host outside and a process of the node, and what they talk to.
    fn clients(&self, family: Family) -> [(&Host, SocketAddr); 3] {
        let vip = self.service.at(family, ECHO_PORT);
        [
            (&self.client, vip),
            (&self.lab.external, self.node().at(family, NODE_PORT)),
            (self.node(), vip),
        ]
    }

    /// Processes of the node have fewer: netfilter masquerades them by ports that flows of
    /// other processes may have from us, one in 64,000 for each of those.
    fn share(&self, client: &Host, each: usize) -> usize {
        if client.name() == self.node().name() {
            each / 8
        } else {
            each
        }
    }

    fn open(&self, each: usize) -> Result<Vec<OpenFlows>> {
        let mut flows = Vec::new();
        for &family in self.lab.families().list() {
            for (client, target) in self.clients(family) {
                for _ in 0..self.share(client, each) {
                    let opened = OpenFlows::start(client, target);
                    let context = || format!("{} to {target}", client.name());
                    flows.push(opened.with_context(context)?);
                }
            }
        }
        Ok(flows)
    }

    fn loads(&self) -> Vec<ConnectLoad> {
        let mut loads = Vec::new();
        for &family in self.lab.families().list() {
            for (client, target) in self.clients(family) {
                let slower = if client.name() == self.node().name() {
                    10
                } else {
                    1
                };
                let pause = PAUSE * slower;
                loads.push(ConnectLoad::start(client, pause, move || ask_tcp(target)));
                // A datagram may be lost when rules change; nobody may stay without answer.
                loads.push(ConnectLoad::start(client, pause, move || {
                    ask_udp_patiently(target, 64).map_err(io::Error::other)
                }));
            }
        }
        loads
    }

    fn start_agent(&self, sockets: Sockets) -> Result<Agent<'_>> {
        let options = AgentOptions::with_sockets(sockets);
        let agent = Agent::start(self.node(), &self.lab, &options)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Ends what netfilter knows of UDP, as if two minutes had passed.
    fn forget_udp(&self) -> Result<()> {
        self.node().run(|| {
            let mut udp = Vec::new();
            for family in [libc::AF_INET, libc::AF_INET6] {
                conntrack::list(family, |connection| {
                    if i32::from(connection.protocol) == libc::IPPROTO_UDP {
                        udp.push(connection.original);
                    }
                })?;
            }
            for original in &udp {
                conntrack::forget(17, original)?;
            }
            Ok(())
        })
    }
}

fn stay(flows: &mut [OpenFlows]) -> Result<()> {
    for (number, flows) in flows.iter_mut().enumerate() {
        flows.stay().with_context(|| format!("pair {number}"))?;
    }
    Ok(())
}

fn nothing_failed(loads: Vec<ConnectLoad>) -> Result<usize> {
    let mut answered = 0;
    for load in loads {
        let report = load.stop()?;
        ensure!(report.failures.is_empty(), "{:?}", report.failures);
        answered += report.answered();
    }
    Ok(answered)
}

/// Runs `takeover` with the rights that a container has, and returns whether it succeeded, and
/// what it said.
fn takeover(node: &Node, arguments: &[&str]) -> Result<(bool, String)> {
    let arguments: Vec<_> = ["takeover"].iter().chain(arguments).copied().collect();
    let Output {
        status,
        stdout,
        stderr,
    } = agent::command_in_container(node, &arguments)?;
    let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    Ok((status.success(), said))
}

fn has_taken_over(agent: &Agent<'_>) -> Result<()> {
    eventually("new flows are ours", SOON, || {
        ensure!(agent.log().contains(TAKEN), "not yet");
        Ok(())
    })
}

/// Connections, and UDP sockets, of a client in each family.
fn flows_of_each() -> Result<usize> {
    Ok(std::env::var("TANDEM_FLOWS").map_or(Ok(120), |flows| flows.parse())?)
}

/// A thousand flows of pods, of hosts outside that are masqueraded, and of processes of the
/// node, over TCP and UDP, in both families: none breaks or gets another backend, and no new
/// one fails, on the way from kube-proxy.
#[rstest]
#[case::packets(Topology::ROUTED, Sockets::Off)]
#[case::sockets(Topology::ROUTED, Sockets::All)]
#[case::flannel(Topology { drop_invalid: true, ..Topology::FLANNEL }, Sockets::Off)]
fn no_flow_breaks_on_the_way_from_kube_proxy(
    #[case] topology: Topology,
    #[case] sockets: Sockets,
) -> Result<()> {
    let each = flows_of_each()?;
    let scene = Scene::start(topology)?;
    let node = scene.node();
    let mut of_kube_proxy = scene.open(each)?;

    let loads = scene.loads();
    let agent = scene.start_agent(sockets)?;
    assert!(agent.log().contains(HOLDS), "{}", agent.log());
    has_taken_over(&agent)?;
    stay(&mut of_kube_proxy)?;
    assert!(nothing_failed(loads).context("there")? > 20);
    let before = flows_opened(node)?;
    let mut ours = scene.open(each).context("ours")?;
    let opened = usize::try_from(flows_opened(node)? - before)?;
    let (safe, said) = takeover(node, &["status"])?;
    assert!(!safe && said.contains("of kube-proxy go on"), "{said}");
    if sockets == Sockets::Off {
        // But for those of the node's processes, as kube-proxy's rules come first, and for
        // UDP from ports that clients of kube-proxy have just used.
        assert!(opened >= each * 7, "{opened} of {}", ours.len() * 2);
    }
    stay(&mut of_kube_proxy)?;
    stay(&mut ours)?;

    // Those of kube-proxy end.
    drop(of_kube_proxy);
    scene.forget_udp()?;
    eventually("kube-proxy can be stopped", SOON, || {
        let (safe, said) = takeover(node, &["status"])?;
        ensure!(safe, "{said}");
        Ok(())
    })?;
    agent::command(node, &["cleanup", "--kube-proxy"])?;
    let rules = node.exec("nft", &["list", "ruleset"])?;
    assert!(!rules.contains("dnat to"), "{rules}");
    Ok(())
}

/// The same on the way back, to a kube-proxy that was not there before.
#[rstest]
#[case::packets(Topology::ROUTED, Sockets::Off)]
#[case::sockets(Topology::ROUTED, Sockets::All)]
#[case::flannel(Topology { drop_invalid: true, ..Topology::FLANNEL }, Sockets::Off)]
#[ignore = "single new connections fail still, see docs/limits.md"]
fn no_flow_breaks_on_the_way_back(
    #[case] topology: Topology,
    #[case] sockets: Sockets,
) -> Result<()> {
    let each = flows_of_each()?;
    let scene = Scene::start(topology)?;
    let node = scene.node();
    scene.remove_kube_proxy();
    let _agent = scene.start_agent(sockets)?;
    let mut ours = scene.open(each).context("ours")?;
    let (done, said) = takeover(node, &["back"])?;
    assert!(!done && said.contains("no rules of kube-proxy"), "{said}");
    let loads = scene.loads();
    scene.start_kube_proxy()?;
    let (done, said) = takeover(node, &["back"])?;
    assert!(done && said.contains("of ours go on"), "{said}");
    let before = flows_opened(node)?;
    let mut new = scene.open(each).context("back")?;
    // But for what keeps them apart from ours.
    let opened = usize::try_from(flows_opened(node)? - before)?;
    assert!(opened < each / 4, "{opened} are ours");
    stay(&mut ours)?;
    stay(&mut new)?;
    assert!(nothing_failed(loads).context("back")? > 20);
    Ok(())
}

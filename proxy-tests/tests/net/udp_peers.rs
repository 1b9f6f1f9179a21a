//! Peers that talk to each other through Services, each from one port: gossip
//! protocols, NTP and IKE do. Netfilter's NAT, as kube-proxy uses it, is the control.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, Family, Lab, Pod, Service, Sockets, Topology, Wiring, eventually, traffic::ping,
};
use rstest::rstest;

const PORT: u16 = 7946;
const ANSWER: Duration = Duration::from_secs(5);
/// Questions of each peer.
const ROUNDS: u8 = 5;
const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    // Without it netfilter does not see what the bridge carries.
    bridge_netfilter: true,
    ..Topology::ONE_NODE
};

/// Who serves the nodes.
#[derive(Clone, Copy, Debug)]
enum Proxy {
    Agent(Sockets),
    Netfilter,
}

struct Peer {
    socket: UdpSocket,
    /// The pod's own address and port.
    own: SocketAddr,
    /// The frontend by which others know it.
    frontend: SocketAddr,
}

impl Peer {
    fn new(pod: &Pod, service: &Service, family: Family) -> Result<Self> {
        let own = pod.at(family, PORT);
        let socket = pod.run(|| UdpSocket::bind(own))?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(Self {
            socket,
            own,
            frontend: service.at(family, PORT),
        })
    }

    fn say(&self, word: &str, to: SocketAddr) -> Result<()> {
        self.socket.send_to(word.as_bytes(), to)?;
        Ok(())
    }

    /// Returns the sender of the next datagram, which must be this one.
    fn hear(&self, word: &str) -> Result<SocketAddr> {
        let mut buffer = [0; 64];
        let (length, sender) = self
            .socket
            .recv_from(&mut buffer)
            .with_context(|| format!("{} hears no {word:?}", self.own))?;
        let heard = String::from_utf8_lossy(&buffer[..length]);
        ensure!(heard == word, "{} hears {heard:?}, not {word:?}", self.own);
        Ok(sender)
    }
}

/// Two peers, their Services, and who serves them.
struct Scene {
    lab: Lab,
    services: [Service; 2],
    pods: [Pod; 2],
}

impl Scene {
    fn set(topology: Topology) -> Result<Self> {
        let lab = Lab::start(topology)?;
        let (first, last) = (&lab.nodes[0], &lab.nodes[topology.nodes - 1]);
        let pods = [first.add_pod("one")?, last.add_pod("two")?];
        let services = [("one", 1), ("two", 2)]
            .map(|(name, number)| Service::new(name, number, lab.families()).udp(PORT, PORT));
        for (service, pod) in services.iter().zip(&pods) {
            lab.manifests.write(&service.clone().endpoint(pod))?;
        }
        Ok(Self {
            lab,
            services,
            pods,
        })
    }

    /// Lets them talk for some rounds, in each family.
    fn play(&self, proxy: Proxy, talk: fn(u8, &Peer, &Peer) -> Result<()>) -> Result<()> {
        let _agents = match proxy {
            Proxy::Agent(sockets) => {
                let options = AgentOptions::with_sockets(sockets);
                self.lab.start_agents(&options)?
            }
            Proxy::Netfilter => {
                for &family in self.lab.families().list() {
                    let rules = self.rules(family);
                    self.lab
                        .nodes
                        .iter()
                        .try_for_each(|node| node.nft(&rules))?;
                }
                Vec::new()
            }
        };
        for &family in self.lab.families().list() {
            let [one, two] = &self.pods;
            eventually("they reach each other", ANSWER, || {
                one.run(|| ping(two.address(family), Duration::from_secs(1)))?;
                Ok(())
            })?;
            let one = Peer::new(&self.pods[0], &self.services[0], family)?;
            let two = Peer::new(&self.pods[1], &self.services[1], family)?;
            for round in 0..ROUNDS {
                talk(round, &one, &two).with_context(|| format!("{family}, round {round}"))?;
            }
        }
        Ok(())
    }

    /// What kube-proxy's rules do for pods that talk to the Services.
    fn rules(&self, family: Family) -> String {
        let ip = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let rules = self.services.iter().zip(&self.pods).map(|(service, pod)| {
            let (frontend, backend) = (service.cluster_ip(family), pod.at(family, PORT));
            format!("    {ip} daddr {frontend} udp dport {PORT} dnat to {backend}\n")
        });
        let services: String = rules.collect();
        format!(
            "
table {ip} services {{
  chain services {{
{services}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
}}
"
        )
    }
}

/// Questions come from the peer itself and answers from the Service that was asked, also
/// while each has asked the other.
#[rstest]
fn answers_come_from_the_service_that_was_asked(
    #[values(Topology::ONE_NODE, BRIDGE, Topology::ROUTED, Topology::FLANNEL)] topology: Topology,
    #[values(
        Proxy::Agent(Sockets::Off),
        Proxy::Agent(Sockets::All),
        Proxy::Netfilter
    )]
    proxy: Proxy,
) -> Result<()> {
    Scene::set(topology)?.play(proxy, |round, one, two| {
        let first = ask(round, one, two)?;
        let second = ask(round, two, one)?;
        for (own, asker) in [(one, first), (two, second)] {
            // The port of the one that asks last may be another one.
            ensure!(
                asker.ip() == own.own.ip(),
                "the question of {} comes from {asker}",
                own.own
            );
        }
        answer(round, two, one, first)?;
        answer(round, one, two, second)
    })
}

/// If neither has heard the other's question yet, answers come from the Service, too.
#[rstest]
fn questions_may_cross(
    #[values(Topology::ONE_NODE, Topology::ROUTED)] topology: Topology,
    #[values(
        Proxy::Agent(Sockets::Off),
        Proxy::Agent(Sockets::All),
        Proxy::Netfilter
    )]
    proxy: Proxy,
) -> Result<()> {
    Scene::set(topology)?.play(proxy, |round, one, two| {
        one.say(&word("question", round, one), two.frontend)?;
        two.say(&word("question", round, two), one.frontend)?;
        let first = two.hear(&word("question", round, one))?;
        let second = one.hear(&word("question", round, two))?;
        answer(round, two, one, first)?;
        answer(round, one, two, second)
    })
}

fn word(kind: &str, round: u8, peer: &Peer) -> String {
    format!("{kind} {round} of {}", peer.own.ip())
}

/// Asks the peer. Returns the sender, as the peer sees it.
fn ask(round: u8, own: &Peer, peer: &Peer) -> Result<SocketAddr> {
    own.say(&word("question", round, own), peer.frontend)?;
    peer.hear(&word("question", round, own))
}

/// Answers the peer's question, which came from `asker`.
fn answer(round: u8, own: &Peer, peer: &Peer, asker: SocketAddr) -> Result<()> {
    own.say(&word("answer", round, own), asker)?;
    let server = peer.hear(&word("answer", round, own))?;
    ensure!(
        server == own.frontend,
        "the answer to {} comes from {server}, not {}",
        peer.own,
        own.frontend
    );
    Ok(())
}

//! Peers that talk to each other through Services, each from one port: gossip
//! protocols, NTP and IKE do.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::{AgentOptions, Family, Lab, Pod, Service, Sockets, Topology, Wiring};
use rstest::rstest;

const PORT: u16 = 7946;
const ANSWER: Duration = Duration::from_secs(5);
/// Questions of each peer.
const ROUNDS: u8 = 5;
const BRIDGE: Topology = Topology {
    wiring: Wiring::Bridge,
    ..Topology::ONE_NODE
};

struct Peer {
    socket: UdpSocket,
    /// Where it is.
    own: SocketAddr,
    /// By which others know it.
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

    /// Who sent the next datagram, which is this one.
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

/// Questions come from the peer itself and answers from the Service that was asked, also
/// while each has asked the other.
#[rstest]
fn answers_come_from_the_service_that_was_asked(
    #[values(Topology::ONE_NODE, BRIDGE)] topology: Topology,
) -> Result<()> {
    let lab = Lab::start(topology)?;
    let pods = lab.nodes[0].add_pods(["one", "two"])?;
    let services = [("one", 1), ("two", 2)]
        .map(|(name, number)| Service::new(name, number, lab.families()).udp(PORT, PORT));
    for (service, pod) in services.iter().zip(&pods) {
        lab.manifests.write(&service.clone().endpoint(pod))?;
    }
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::Off))?;

    for &family in lab.families().list() {
        let one = Peer::new(&pods[0], &services[0], family)?;
        let two = Peer::new(&pods[1], &services[1], family)?;
        for round in 0..ROUNDS {
            let word = |kind: &str, peer: &Peer| format!("{kind} {round} of {}", peer.own.ip());
            // Both ask before either answers.
            for (own, peer) in [(&one, &two), (&two, &one)] {
                own.say(&word("question", own), peer.frontend)?;
                let asker = peer.hear(&word("question", own))?;
                ensure!(
                    asker == own.own,
                    "{family}: the question of {} comes from {asker}",
                    own.own
                );
            }
            for (own, peer) in [(&two, &one), (&one, &two)] {
                own.say(&word("answer", own), peer.own)?;
                let server = peer.hear(&word("answer", own))?;
                ensure!(
                    server == own.frontend,
                    "{family}: the answer to {} comes from {server}, not {}",
                    peer.own,
                    own.frontend
                );
            }
        }
    }
    Ok(())
}

//! Checks that clients reach a Service, and which backends they reach.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    addressing::is_pod_of,
    family::Family,
    host::Host,
    node::Node,
    poll::eventually,
    traffic::{Answer, TcpClient, UdpClient},
};

/// One of two backends is missed this many times in a row once in 10^9.
const ASKS: usize = 30;
/// An answer comes within a millisecond or not at all.
const PATIENCE: Duration = Duration::from_millis(300);
/// From `kubectl` to the last node's tables, on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Both that pods speak here.
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A question a test asks: what does `client` find at `target`?
#[derive(Clone, Copy, Debug)]
pub struct Probe<'lab> {
    client: &'lab Host,
    target: SocketAddr,
    through: Option<&'lab Node>,
}

impl<'lab> Probe<'lab> {
    /// From a pod to an address of a Service. Servers see the pod's address.
    pub fn new(client: &'lab Host, target: SocketAddr) -> Self {
        Self {
            client,
            target,
            through: None,
        }
    }

    /// From a host outside the cluster to an address of a Service that leads
    /// it to `node`. Pods of that node see the host's address, those of others
    /// one of the node's.
    pub fn through(node: &'lab Node, client: &'lab Host, target: SocketAddr) -> Self {
        Self {
            through: Some(node),
            ..Self::new(client, target)
        }
    }

    /// Waits until exactly these servers answer, over TCP and UDP, and checks
    /// whose address they see.
    pub fn reaches(&self, servers: &[&Host]) -> Result<()> {
        Protocol::BOTH
            .into_iter()
            .try_for_each(|protocol| self.reaches_over(protocol, servers))
    }

    /// [`Probe::reaches`], over one protocol.
    pub fn reaches_over(&self, protocol: Protocol, servers: &[&Host]) -> Result<()> {
        let expected: BTreeSet<_> = servers.iter().map(|host| host.name().to_owned()).collect();
        eventually(&self.describe(protocol), LIMIT, || {
            let found = self.servers(protocol, |found| found.is_subset(&expected))?;
            ensure!(found == expected, "found {found:?}, expected {expected:?}");
            Ok(())
        })
    }

    /// Waits until nobody answers, over TCP and UDP.
    pub fn reaches_nobody(&self) -> Result<()> {
        Protocol::BOTH
            .into_iter()
            .try_for_each(|protocol| self.reaches_nobody_over(protocol))
    }

    /// [`Probe::reaches_nobody`], over one protocol.
    pub fn reaches_nobody_over(&self, protocol: Protocol) -> Result<()> {
        eventually(&self.describe(protocol), LIMIT, || {
            match self.ask(protocol) {
                Err(_) => Ok(()),
                Ok(answer) => bail!("{} still answers", answer.server),
            }
        })
    }

    /// Waits until connections are refused at once, and datagrams answered
    /// with port unreachable: what a Service without endpoints does.
    pub fn is_refused(&self) -> Result<()> {
        for protocol in Protocol::BOTH {
            eventually(&self.describe(protocol), LIMIT, || {
                let error = match self.ask(protocol) {
                    Ok(answer) => bail!("{} answers", answer.server),
                    Err(error) => error,
                };
                ensure!(error.kind() == io::ErrorKind::ConnectionRefused, "{error}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Waits until questions are dropped, over TCP and UDP: nobody answers, nor
    /// refuses.
    pub fn is_ignored(&self) -> Result<()> {
        for protocol in Protocol::BOTH {
            eventually(&self.describe(protocol), LIMIT, || {
                let error = match self.ask(protocol) {
                    Ok(answer) => bail!("{} answers", answer.server),
                    Err(error) => error,
                };
                ensure!(
                    matches!(
                        error.kind(),
                        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
                    ),
                    "{error}"
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Waits until one and the same server answers again and again over
    /// `protocol`, and returns its name.
    pub fn sticks(&self, protocol: Protocol) -> Result<String> {
        eventually(&self.describe(protocol), LIMIT, || {
            let mut found = self.servers(protocol, |found| found.len() == 1)?;
            ensure!(found.len() == 1, "found {found:?}");
            found.pop_first().context("nobody answers")
        })
    }

    /// One question, now.
    pub fn ask(&self, protocol: Protocol) -> io::Result<Answer> {
        self.client.run(|| ask(protocol, self.target))
    }

    /// Returns the servers that answer a number of questions, or fewer if what was found
    /// so far will not do: every question takes room in the nodes' tables for some time.
    /// Each server must see the client's address or, through a node that masquerades, one
    /// of the node's.
    fn servers(
        &self,
        protocol: Protocol,
        will_do: impl Fn(&BTreeSet<String>) -> bool + Sync,
    ) -> Result<BTreeSet<String>> {
        let masqueraded = match self.through {
            Some(node) => node.device_addresses(Family::of(self.target.ip()))?,
            None => Vec::new(),
        };
        self.client.run(|| {
            let mut servers = BTreeSet::new();
            for attempt in 0..ASKS {
                let answer =
                    ask(protocol, self.target).with_context(|| format!("attempt {attempt}"))?;
                self.check_addresses(&answer, &masqueraded)?;
                servers.insert(answer.server);
                if !will_do(&servers) {
                    break;
                }
            }
            Ok(servers)
        })
    }

    /// The server has seen the address that it should.
    fn check_addresses(&self, answer: &Answer, masqueraded: &[IpAddr]) -> Result<()> {
        let family = Family::of(self.target.ip());
        let Answer { client, local, .. } = answer;
        ensure!(Family::of(local.ip()) == family, "{answer:?}");
        let elsewhere = self
            .through
            .is_some_and(|node| !is_pod_of(node.index(), local.ip()));
        let is_right = if elsewhere {
            masqueraded.contains(&client.ip())
        } else {
            client.ip() == self.client.address(family)
        };
        ensure!(is_right, "{} sees {client}", answer.server);
        Ok(())
    }

    fn describe(&self, protocol: Protocol) -> String {
        format!("{} to {} over {protocol}", self.client.name(), self.target)
    }
}

fn ask(protocol: Protocol, target: SocketAddr) -> io::Result<Answer> {
    match protocol {
        Protocol::Tcp => TcpClient::to(target)
            .within(PATIENCE)
            .connect()
            .map(|connection| connection.answer),
        Protocol::Udp => {
            let client = UdpClient::connect(target)?;
            client.set_patience(PATIENCE)?;
            client.ask(b"question")
        }
    }
}

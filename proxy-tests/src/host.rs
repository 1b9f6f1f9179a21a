//! A test host: a network namespace, and the ways to do something in it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    panic::resume_unwind,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};

use crate::{
    cgroup::Cgroup,
    exec,
    family::{Families, Family},
    netns::Netns,
};

/// The addresses a host is known by, one of each family it has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// The address `of` gives for each family of `families`.
    pub fn choose(families: Families, of: impl Fn(Family) -> IpAddr) -> Self {
        let mut chosen = Self::default();
        for &family in families.list() {
            match of(family) {
                IpAddr::V4(address) => chosen.v4 = Some(address),
                IpAddr::V6(address) => chosen.v6 = Some(address),
            }
        }
        chosen
    }

    /// The address of one family.
    pub fn get(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// All of them, IPv4 first.
    pub fn list(&self) -> Vec<IpAddr> {
        Family::BOTH
            .into_iter()
            .filter_map(|family| self.get(family))
            .collect()
    }
}

/// A network namespace with addresses and, on a node, a cgroup. [`Node`],
/// [`Pod`] and external clients dereference to it.
///
/// [`Node`]: crate::Node
/// [`Pod`]: crate::Pod
#[derive(Debug)]
pub struct Host {
    name: String,
    netns: Netns,
    cgroup: Option<Arc<Cgroup>>,
    addresses: Addresses,
}

impl Host {
    /// A host called `name` in `netns`. Sets what every host needs: addresses
    /// usable at once, loopback up, `ping` sockets for everybody.
    pub fn new(
        name: &str,
        netns: Netns,
        cgroup: Option<Arc<Cgroup>>,
        addresses: Addresses,
        families: Families,
    ) -> Result<Self> {
        let host = Self {
            name: name.to_owned(),
            netns,
            cgroup,
            addresses,
        };
        host.sysctls(&[
            ("net/ipv4/ping_group_range", "0 2147483647"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
        ])?;
        match families {
            Families::Dual => host.ip("link set lo up")?,
            Families::V4Only => {
                host.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
                host.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
                host.ip("link set lo up")?;
            }
            Families::V6Only => host.ip("link set lo up\naddr del 127.0.0.1/8 dev lo")?,
        }
        Ok(host)
    }

    /// The host's short name: `node-1`, `client`, `external`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its network namespace.
    pub fn netns(&self) -> &str {
        self.netns.name()
    }

    /// Its addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its address of one family, which the lab must have.
    pub fn address(&self, family: Family) -> IpAddr {
        let address = self.addresses.get(family);
        address.unwrap_or_else(|| panic!("{} has no {family} address", self.name))
    }

    /// [`Host::address`] with a port.
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// Runs `work` on a fresh thread inside this host and returns its result;
    /// a panic of `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let outcome = thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    work()
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Starts `work` on a thread of its own inside this host.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        // The namespace may be left only from within, so the new thread
        // enters it and the caller waits until it has.
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.enter();
                thread::spawn(work)
            });
            entered.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Moves the calling thread here. A thread outside the namespace would
    /// send its traffic into the machine's own network: never carry on.
    fn enter(&self) {
        let entered = self.netns.enter().and_then(|()| match &self.cgroup {
            Some(cgroup) => cgroup.enter(),
            None => Ok(()),
        });
        if let Err(error) = entered {
            panic!("{}: {error:#}", self.name);
        }
    }

    /// Runs a program inside this host and returns what it printed.
    pub fn exec(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.feed(program, arguments, "")
    }

    /// [`Host::exec`] with standard input.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.run(|| exec::run(program, arguments, input))
            .with_context(|| format!("on {}", self.name))
    }

    /// Runs the lines of `batch` as `ip` commands.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], batch).map(drop)
    }

    /// Loads an nftables rule set.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], ruleset).map(drop)
    }

    /// Writes one network sysctl, named by its path below /proc/sys.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.sysctls(&[(path, value)])
    }

    /// Writes several, from one thread.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (path, value) in settings {
                std::fs::write(format!("/proc/sys/{path}"), value)
                    .with_context(|| format!("{}: sysctl {path}={value}", self.name))?;
            }
            Ok(())
        })
    }
}

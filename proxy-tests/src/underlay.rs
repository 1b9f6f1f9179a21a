//! The network between the nodes: a switch, and routers where the topology
//! wants them.

use std::fmt::Write;

use anyhow::Result;

use crate::{
    addressing::{self, lan, subnet_length},
    family::{Families, Family},
    host::{Addresses, Host},
    netns::Netns,
    topology::{Topology, UnderlayKind},
};

/// The switch everybody is plugged in, directly or through a router.
#[derive(Debug)]
pub struct Underlay {
    kind: UnderlayKind,
    families: Families,
    switch: Host,
    routers: Vec<Host>,
}

impl Underlay {
    /// Sets up the switch: a bridge `lan`. On a plain LAN it is also the
    /// hosts' default gateway, so that they have a default route as real
    /// machines do.
    pub fn start(switch: Netns, topology: &Topology) -> Result<Self> {
        let Topology {
            families,
            underlay: kind,
            ..
        } = *topology;
        let addresses = Addresses::choose(families, |family| lan(family, 0, 1));
        let switch = Host::new("switch", switch, None, addresses, families)?;
        let mut batch = String::from("link add lan type bridge\nlink set lan up\n");
        for &family in families.list() {
            writeln!(
                batch,
                "addr add {}/{} dev lan nodad",
                lan(family, 0, 1),
                subnet_length(family)
            )?;
        }
        switch.ip(&batch)?;
        forward(&switch, families)?;
        Ok(Self {
            kind,
            families,
            switch,
            routers: Vec::new(),
        })
    }

    /// The address a host with this number will have.
    pub fn address_of(&self, number: u8) -> Addresses {
        Addresses::choose(self.families, |family| {
            lan(family, self.segment(number), number)
        })
    }

    /// Plugs `host`, which has [`Underlay::address_of`] this number, in with a
    /// device `eth0`. `router` is a namespace for its router, if
    /// [`Underlay::needs_routers`].
    pub fn attach(&mut self, host: &Host, number: u8, router: Option<Netns>) -> Result<()> {
        match (self.kind, router) {
            (UnderlayKind::Routed { mtu }, Some(router)) => {
                let router = self.start_router(router, host, number, mtu)?;
                self.routers.push(router);
            }
            _ => self.switch.ip(&format!(
                "link add {port} type veth peer name eth0 netns {netns}\n\
                 link set {port} master lan up",
                port = port_of(host),
                netns = host.netns(),
            ))?,
        }
        let mut batch = String::from("link set eth0 up\n");
        for address in host.addresses().list() {
            let family = Family::of(address);
            let gateway = lan(family, self.segment(number), 1);
            writeln!(
                batch,
                "addr add {address}/{} dev eth0 nodad",
                subnet_length(family)
            )?;
            writeln!(batch, "route add default via {gateway} dev eth0")?;
        }
        host.ip(&batch)
    }

    /// The families of the lab.
    pub fn families(&self) -> Families {
        self.families
    }

    /// Returns whether every host gets a router of its own.
    pub fn needs_routers(&self) -> bool {
        matches!(self.kind, UnderlayKind::Routed { .. })
    }

    /// The host that is the switch, for tests that change its ports.
    pub fn switch(&self) -> &Host {
        &self.switch
    }

    /// Makes the routers send Services to the node with this number, and pods
    /// to their nodes.
    pub fn route_cluster(&self, nodes: &[u8]) -> Result<()> {
        let hosts = self.routers.iter().chain([&self.switch]);
        for host in hosts {
            let mut batch = String::new();
            for &family in self.families.list() {
                for (index, &number) in (1..).zip(nodes) {
                    let next = self.next_hop(host, family, number);
                    writeln!(
                        batch,
                        "route replace {} via {next}",
                        addressing::pod_cidr(family, index)
                    )?;
                }
                if let Some(&first) = nodes.first() {
                    let next = self.next_hop(host, family, first);
                    writeln!(
                        batch,
                        "route replace {} via {next}",
                        addressing::service_cidr(family)
                    )?;
                }
            }
            host.ip(&batch)?;
        }
        Ok(())
    }

    /// Returns the next hop of `router` for the host with this number: the host
    /// itself on its own segment, else that host's router.
    fn next_hop(&self, router: &Host, family: Family, number: u8) -> std::net::IpAddr {
        let own = router.name() == format!("router-{number}");
        if own || !self.needs_routers() {
            lan(family, self.segment(number), number)
        } else {
            lan(family, 0, number)
        }
    }

    /// A router between the switch (segment 0, where it has the number of its
    /// host) and the segment of `host` (where it is number 1).
    fn start_router(&self, netns: Netns, host: &Host, number: u8, mtu: u16) -> Result<Host> {
        let addresses = Addresses::choose(self.families, |family| lan(family, 0, number));
        let router = Host::new(
            &format!("router-{number}"),
            netns,
            None,
            addresses,
            self.families,
        )?;
        self.switch.ip(&format!(
            "link add {port} mtu {mtu} type veth peer name core mtu {mtu} netns {netns}\n\
             link set {port} master lan up",
            port = port_of(host),
            netns = router.netns(),
        ))?;
        let mut batch = format!(
            "link add leg type veth peer name eth0 netns {}\n\
             link set leg up\nlink set core up\n",
            host.netns(),
        );
        for &family in self.families.list() {
            let length = subnet_length(family);
            writeln!(
                batch,
                "addr add {}/{length} dev core nodad",
                lan(family, 0, number)
            )?;
            writeln!(
                batch,
                "addr add {}/{length} dev leg nodad",
                lan(family, self.segment(number), 1)
            )?;
        }
        router.ip(&batch)?;
        forward(&router, self.families)?;
        // Everybody learns where the new segment is.
        for other in &self.routers {
            other.ip(&self.segment_route(number)?)?;
            let known = other.name().trim_start_matches("router-").parse()?;
            router.ip(&self.segment_route(known)?)?;
        }
        self.switch.ip(&self.segment_route(number)?)?;
        Ok(router)
    }

    fn segment_route(&self, number: u8) -> Result<String> {
        let mut batch = String::new();
        for &family in self.families.list() {
            let segment = lan(family, self.segment(number), 0);
            writeln!(
                batch,
                "route add {segment}/{} via {}",
                subnet_length(family),
                lan(family, 0, number)
            )?;
        }
        Ok(batch)
    }

    /// The LAN segment of a host: the one all share, or one of its own.
    fn segment(&self, number: u8) -> u8 {
        if self.needs_routers() { number } else { 0 }
    }
}

/// Turns a host into a router.
pub fn forward(host: &Host, families: Families) -> Result<()> {
    for &family in families.list() {
        match family {
            Family::V4 => host.sysctl("net/ipv4/ip_forward", "1")?,
            Family::V6 => host.sysctl("net/ipv6/conf/all/forwarding", "1")?,
        }
    }
    Ok(())
}

/// The switch's port of a host.
pub fn port_of(host: &Host) -> String {
    format!("p-{}", host.name())
}

/// Sends the Services' addresses to `node` from a host outside the cluster.
pub fn route_services(host: &Host, node: &Host) -> Result<()> {
    let mut batch = String::new();
    for address in node.addresses().list() {
        let services = addressing::service_cidr(Family::of(address));
        writeln!(batch, "route replace {services} via {address}")?;
    }
    host.ip(&batch)
}

/// Sends the addresses of load balancers and external IPs to `next`.
pub fn route_public(host: &Host, next: &Host) -> Result<()> {
    let mut batch = String::new();
    for address in next.addresses().list() {
        let family = Family::of(address);
        let (public, length) = (addressing::public(family, 0), subnet_length(family));
        writeln!(batch, "route replace {public}/{length} via {address}")?;
    }
    host.ip(&batch)
}

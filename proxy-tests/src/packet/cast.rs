//! The addresses that the tests play with, alike in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::Family;

/// The players of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    pub family: Family,
}

impl Cast {
    pub fn of(family: Family) -> Self {
        Self { family }
    }

    fn ip(self, v4: [u8; 4], v6: [u16; 4]) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::from(v4).into(),
            Family::V6 => {
                let [a, b, c, d] = v6;
                Ipv6Addr::new(0xfd00, a, b, c, 0, 0, 0, d).into()
            }
        }
    }

    /// A client within the pods' addresses, which needs no masquerading.
    pub fn pod(self) -> SocketAddr {
        self.pod_with(1, 40_000)
    }

    /// Pod number `index`, and the port it uses.
    pub fn pod_with(self, index: u8, port: u16) -> SocketAddr {
        let ip = self.ip([10, 244, 1, index], [0x10, 0x244, 1, index.into()]);
        SocketAddr::new(ip, port)
    }

    /// A client that is no pod of the cluster.
    pub fn outsider(self) -> SocketAddr {
        self.outsider_with(1, 40_000)
    }

    /// Outsider number `index`, and the port it uses.
    pub fn outsider_with(self, index: u8, port: u16) -> SocketAddr {
        let ip = self.ip([198, 51, 100, index], [0x51, 0x100, 0, index.into()]);
        SocketAddr::new(ip, port)
    }

    /// The frontend that most tests use.
    pub fn vip(self) -> SocketAddr {
        self.vip_with(10, 80)
    }

    /// Frontend number `index`.
    pub fn vip_with(self, index: u8, port: u16) -> SocketAddr {
        let ip = self.ip([10, 96, 0, index], [0x10, 0x96, 0, index.into()]);
        SocketAddr::new(ip, port)
    }

    /// Endpoint number `index`.
    pub fn endpoint(self, index: u8) -> SocketAddr {
        let ip = self.ip([10, 244, 2, index], [0x10, 0x244, 2, index.into()]);
        SocketAddr::new(ip, 8080)
    }

    /// Endpoints 1 to `count`.
    pub fn endpoints(self, count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|index| self.endpoint(index)).collect()
    }

    /// The device's own address, which flows are masqueraded to.
    pub fn node(self) -> IpAddr {
        self.ip([192, 168, 7, 1], [0x168, 7, 0, 1])
    }

    /// A router on the way.
    pub fn router(self) -> IpAddr {
        self.ip([192, 168, 7, 254], [0x168, 7, 0, 0xfe])
    }

    /// Nobody that the tables know.
    pub fn stranger(self) -> SocketAddr {
        SocketAddr::new(self.ip([203, 0, 113, 9], [0x203, 0x113, 0, 9]), 4444)
    }
}

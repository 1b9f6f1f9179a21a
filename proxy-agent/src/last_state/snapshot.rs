//! What is kept of the cluster's state, and how it is written.

use std::{fs, net::IpAddr, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::model::{EndpointSlice, Node, Service, ServiceCidr};

/// The beginning of every file.
const MAGIC: [u8; 8] = *b"tandemst";
/// Raised with every change of what is written, of the types of the model, too. A test
/// tells.
const FORMAT: u32 = 1;
const HEADER: usize = 16;

/// The state to be written.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct View<'a> {
    /// This boot of the node: see [`Remembered::leave_out_dead`].
    boot: &'a str,
    node_name: &'a str,
    saved: SystemTime,
    services: Vec<&'a Service>,
    slices: Vec<&'a EndpointSlice>,
    node: Option<&'a Node>,
    /// None if they are not known.
    service_cidrs: Option<Vec<&'a ServiceCidr>>,
}

/// The state as it was written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Remembered {
    boot: String,
    node_name: String,
    pub(crate) saved: SystemTime,
    pub(crate) services: Vec<Service>,
    pub(crate) slices: Vec<EndpointSlice>,
    pub(crate) node: Option<Node>,
    pub(crate) service_cidrs: Option<Vec<ServiceCidr>>,
}

/// A reason why a file is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it is no state of an agent")]
    Foreign,
    #[error("it has format {0}, which this version does not read")]
    Format(u32),
    #[error("it is damaged")]
    Damaged,
    #[error("it is of another node")]
    OtherNode,
}

impl<'a> View<'a> {
    pub(crate) fn new(boot: &'a str, node_name: &'a str) -> Self {
        Self {
            boot,
            node_name,
            saved: SystemTime::now(),
            services: Vec::new(),
            slices: Vec::new(),
            node: None,
            service_cidrs: None,
        }
    }

    #[must_use]
    pub(crate) fn with_services(
        mut self,
        services: impl Iterator<Item = &'a Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Self {
        self.services = services.collect();
        self.slices = slices.collect();
        self
    }

    #[must_use]
    pub(crate) fn with_node(
        mut self,
        node: Option<&'a Node>,
        service_cidrs: Option<Vec<&'a ServiceCidr>>,
    ) -> Self {
        self.node = node;
        self.service_cidrs = service_cidrs;
        self
    }

    /// The whole file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        let mut file = postcard::to_extend(self, vec![0; HEADER])?;
        let sum = checksum(&file[HEADER..]);
        file[..8].copy_from_slice(&MAGIC);
        file[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        file[12..HEADER].copy_from_slice(&sum.to_le_bytes());
        Ok(file)
    }
}

impl Remembered {
    /// The state of this node that a file holds, with what is left of it after this boot.
    pub(crate) fn decode(file: &[u8], node_name: &str, boot: &str) -> Result<Self, Unusable> {
        let (header, body) = file.split_at_checked(HEADER).ok_or(Unusable::Foreign)?;
        let word = |at: usize| {
            let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            u32::from_le_bytes(bytes)
        };
        if header[..8] != MAGIC {
            return Err(Unusable::Foreign);
        }
        if word(8) != FORMAT {
            return Err(Unusable::Format(word(8)));
        }
        if word(12) != checksum(body) {
            return Err(Unusable::Damaged);
        }
        let mut state: Self = postcard::from_bytes(body).map_err(|_| Unusable::Damaged)?;
        if state.node_name != node_name {
            return Err(Unusable::OtherNode);
        }
        if state.boot != boot {
            state.leave_out_dead();
        }
        Ok(state)
    }

    /// Leaves out pods of this node, which did not outlive its reboot and get other
    /// addresses when they are started again. Processes at the node's own addresses come
    /// back there.
    fn leave_out_dead(&mut self) {
        let node = self.node.as_ref();
        let own: Vec<IpAddr> = node
            .iter()
            .flat_map(|node| &node.addresses)
            .map(|a| a.ip)
            .collect();
        for slice in &mut self.slices {
            slice.endpoints.retain(|endpoint| {
                endpoint.placement.node.as_deref() != Some(&*self.node_name)
                    || own.contains(&endpoint.ip)
            });
        }
    }
}

/// CRC-32C.
fn checksum(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0_u8;
        loop {
            let mut sum = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                sum = (sum >> 1) ^ (0x82f6_3b78 * (sum & 1));
                bit += 1;
            }
            table[byte as usize] = sum;
            if byte == u8::MAX {
                break table;
            }
            byte += 1;
        }
    };
    let sum = bytes.iter().fold(u32::MAX, |sum, byte| {
        let [low, ..] = sum.to_le_bytes();
        (sum >> 8) ^ TABLE[usize::from(low ^ byte)]
    });
    !sum
}

/// Tells the boots of a node apart; empty if the kernel does not.
pub(crate) fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    boot.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use proxy_common::net::Protocol;
    use rstest::rstest;

    use super::*;
    use crate::model::{
        Endpoint, FamilyIps, IpFamily, ObjectKey, Placement, ServicePort,
        endpoint_slice::EndpointPort,
        node::{NodeAddress, NodeAddressKind},
    };

    pub(crate) fn service(name: &str, octet: u8) -> Service {
        let mut port = ServicePort::new("http", Protocol::TCP, 80);
        port.node_port = Some(30080);
        Service {
            key: ObjectKey::new("shop", name),
            cluster_ips: FamilyIps {
                v4: Some([10, 96, 0, octet].into()),
                v6: Some([0xfd00, 0x96, 0, 0, 0, 0, 0, octet.into()].into()),
            },
            external_ips: vec![[192, 0, 2, octet].into()],
            source_ranges: vec!["2001:db8::/32".parse().expect("a range")],
            external_local: true,
            affinity: Some(10_800),
            health_check_port: Some(32_000),
            ports: vec![port],
            ..Service::default()
        }
    }

    fn endpoint(ip: &str, node: &str) -> Endpoint {
        let placement = Placement {
            node: Some(node.into()),
            zone_hints: ["a".into()].into(),
            node_hints: [].into(),
        };
        Endpoint {
            ip: ip.parse().expect("an address"),
            ready: true,
            serving: true,
            terminating: false,
            placement: placement.shared(),
        }
    }

    pub(crate) fn slice(
        service: &str,
        family: IpFamily,
        endpoints: &[(&str, &str)],
    ) -> EndpointSlice {
        EndpointSlice {
            key: ObjectKey::new("shop", format!("{service}-{family}")),
            service: ObjectKey::new("shop", service),
            family,
            ports: vec![EndpointPort {
                name: "http".into(),
                protocol: Protocol::TCP,
                port: 8080,
            }],
            endpoints: endpoints
                .iter()
                .map(|(ip, node)| endpoint(ip, node))
                .collect(),
        }
    }

    fn node() -> Node {
        let address = |ip: &str| NodeAddress {
            kind: NodeAddressKind::Internal,
            ip: ip.parse().expect("an address"),
        };
        Node {
            leaving: None,
            key: ObjectKey::new("", "node-0"),
            zone: Some("a".to_owned()),
            pod_cidrs: vec!["10.1.0.0/24".parse().expect("a prefix")],
            addresses: vec![address("192.0.2.1"), address("2001:db8::1")],
        }
    }

    fn slices() -> [EndpointSlice; 2] {
        let v4 = [
            ("10.1.0.7", "node-0"),
            ("10.1.1.7", "node-1"),
            ("192.0.2.1", "node-0"),
        ];
        let v6 = [
            ("fd00:1::7", "node-0"),
            ("fd00:1:1::7", "node-1"),
            ("2001:db8::1", "node-0"),
        ];
        [
            slice("web", IpFamily::V4, &v4),
            slice("web", IpFamily::V6, &v6),
        ]
    }

    fn file() -> Vec<u8> {
        let cidr = ServiceCidr {
            key: ObjectKey::new("", "kubernetes"),
            cidrs: vec!["10.96.0.0/16".parse().expect("a prefix")],
        };
        let (service, slices, node) = (service("web", 1), slices(), node());
        let mut view = View::new("boot-1", "node-0")
            .with_services([&service].into_iter(), slices.iter())
            .with_node(Some(&node), Some(vec![&cidr]));
        view.saved = SystemTime::UNIX_EPOCH;
        view.encode().expect("encoded")
    }

    fn decode(file: &[u8], boot: &str) -> Result<Remembered, Unusable> {
        Remembered::decode(file, "node-0", boot)
    }

    #[test]
    fn what_is_written_is_read() {
        let state = decode(&file(), "boot-1").expect("usable");
        assert_eq!(state.services, [service("web", 1)]);
        assert_eq!(state.slices, slices());
        assert_eq!(state.node, Some(node()));
        assert_eq!(state.service_cidrs.expect("known").len(), 1);
        let [one, other] = [0, 2].map(|at| &state.slices[0].endpoints[at].placement);
        assert!(Arc::ptr_eq(one, other), "one in memory");
    }

    #[test]
    fn pods_of_this_node_do_not_outlive_a_reboot() {
        let state = decode(&file(), "boot-2").expect("usable");
        let left = state.slices.iter().flat_map(|slice| &slice.endpoints);
        let left: Vec<_> = left.map(|endpoint| endpoint.ip.to_string()).collect();
        assert_eq!(
            left,
            ["10.1.1.7", "192.0.2.1", "fd00:1:1::7", "2001:db8::1"]
        );
    }

    #[rstest]
    #[case::empty(|file: &mut Vec<u8>| file.clear(), Unusable::Foreign)]
    #[case::cut_in_the_header(|file: &mut Vec<u8>| file.truncate(9), Unusable::Foreign)]
    #[case::something_else(|file: &mut Vec<u8>| file[0] = b'x', Unusable::Foreign)]
    #[case::newer(|file: &mut Vec<u8>| file[8] = 77, Unusable::Format(77))]
    #[case::cut(|file: &mut Vec<u8>| file.truncate(100), Unusable::Damaged)]
    #[case::longer(|file: &mut Vec<u8>| file.push(0), Unusable::Damaged)]
    #[case::a_bit(|file: &mut Vec<u8>| file[60] ^= 1, Unusable::Damaged)]
    fn what_is_not_whole_is_not_used(#[case] damage: fn(&mut Vec<u8>), #[case] expected: Unusable) {
        let mut file = file();
        damage(&mut file);
        assert_eq!(decode(&file, "boot-1"), Err(expected));
    }

    #[test]
    fn another_nodes_state_is_not_used() {
        let result = Remembered::decode(&file(), "node-1", "boot-1");
        assert_eq!(result, Err(Unusable::OtherNode));
    }

    #[test]
    fn checksums_are_crc_32c() {
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
    }

    /// If this fails, raise FORMAT.
    #[test]
    fn the_format_has_its_number() {
        assert_eq!((FORMAT, checksum(&file()[HEADER..])), (1, 3_523_180_474));
    }
}

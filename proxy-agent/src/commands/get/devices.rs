//! `get devices`: network devices the programs are on.

use std::net::{Ipv4Addr, Ipv6Addr};

use proxy_common::{
    device::Device,
    net::{AddrV4, AddrV6, Address as _},
};
use serde::Serialize;
use tracing::warn;

use crate::{
    commands::get::render::{self, Row},
    dataplane::{
        attach::Hook,
        devices::DeviceTable,
        hooks::{Attached, Hooks, HooksError},
        load,
        mapped::Access,
        pins::Pins,
    },
    model::IpFamily,
    node::{devices::Link, netlink::Netlink},
    sys,
};

/// A device that has a row of `DEVICES`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of the JSON that scripts read"
)]
pub struct DeviceRow {
    /// `None` if the device is gone, or is in another network namespace.
    pub name: Option<String>,
    pub ifindex: u32,
    /// `L2` for frames with an Ethernet header, `L3` for bare packets; `bridge`
    /// for one whose ports have the programs.
    pub kind: &'static str,
    pub bridge: Option<String>,
    /// Addresses that traffic leaving here is masqueraded to.
    pub masquerade_v4: Option<Ipv4Addr>,
    pub masquerade_v6: Option<Ipv6Addr>,
    /// Leads away from this node.
    pub uplink: bool,
    /// True if packets that come in by it pass our programs.
    #[serde(rename = "hooked")]
    pub covered: bool,
    /// True if the local detector takes packets that come in by it for those of pods.
    pub pods: bool,
    /// It leads to pods of this node, whose packets keep their source.
    pub pod_routes: bool,
    /// The way our programs are attached.
    pub attached: Option<&'static str>,
    /// Programs in the order they run; `None` if this process may not ask.
    pub ingress: Option<Vec<ProgramRow>>,
    pub egress: Option<Vec<ProgramRow>>,
}

/// A program on one of a device's hooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramRow {
    pub name: String,
    pub id: u32,
    pub ours: bool,
    pub attached: &'static str,
}

impl From<&Attached> for ProgramRow {
    fn from(program: &Attached) -> Self {
        Self {
            name: program.name.clone(),
            id: program.id,
            ours: program.ours,
            attached: program.mode.name(),
        }
    }
}

impl ProgramRow {
    fn cell(&self) -> String {
        if self.ours {
            format!("{}(ours)", self.name)
        } else {
            format!("{}(id={})", self.name, self.id)
        }
    }
}

impl Row for DeviceRow {
    const HEADERS: &'static [&'static str] = &[
        "NAME",
        "IFINDEX",
        "KIND",
        "BRIDGE",
        "MASQUERADE-IPV4",
        "MASQUERADE-IPV6",
        "FLAGS",
        "ATTACHED",
        "INGRESS",
        "EGRESS",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            render::cell(self.name.as_ref()),
            self.ifindex.to_string(),
            self.kind.to_owned(),
            render::cell(self.bridge.as_ref()),
            render::cell(self.masquerade_v4),
            render::cell(self.masquerade_v6),
            render::list(self.flags()),
            match self.ingress {
                Some(_) => render::cell(self.attached),
                None => render::UNKNOWN.to_owned(),
            },
            Self::programs(self.ingress.as_ref()),
            Self::programs(self.egress.as_ref()),
        ]
    }
}

impl DeviceRow {
    fn programs(programs: Option<&Vec<ProgramRow>>) -> String {
        programs.map_or_else(
            || render::UNKNOWN.to_owned(),
            |programs| render::list(programs.iter().map(ProgramRow::cell)),
        )
    }

    /// Returns the names of the flags that are set.
    fn flags(&self) -> impl Iterator<Item = &'static str> {
        [
            (self.uplink, "uplink"),
            (self.covered, "covered"),
            (self.pods, "pods"),
            (self.pod_routes, "pod-routes"),
        ]
        .into_iter()
        .filter_map(|(is, name)| is.then_some(name))
    }
}

/// Programs of a device's two hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DevicePrograms {
    pub ingress: Vec<Attached>,
    pub egress: Vec<Attached>,
}

/// Returns the row of one device; a bridge is one whose ports have the programs.
/// `links` are the devices of the same network namespace, empty if they are not
/// known; `programs` is `None` if this process may not ask for them.
pub fn row(
    ifindex: u32,
    device: &Device,
    is_bridge: bool,
    links: &[Link],
    programs: Option<&DevicePrograms>,
    family: Option<IpFamily>,
) -> DeviceRow {
    let name_of = |ifindex: u32| {
        let link = links.iter().find(|link| link.ifindex == ifindex);
        link.map(|link| link.name.clone())
    };
    let shows = |wanted: IpFamily| family.is_none_or(|family| family == wanted);
    let has = |flag| device.flags & flag != 0;
    let v4 = device.masquerade_v4;
    let v6 = device.masquerade_v6;
    let mut ours = programs
        .into_iter()
        .flat_map(|programs| programs.ingress.iter().chain(&programs.egress));
    let rows = |of: fn(&DevicePrograms) -> &Vec<Attached>| {
        programs.map(|programs| of(programs).iter().map(ProgramRow::from).collect())
    };
    DeviceRow {
        name: name_of(ifindex),
        ifindex,
        kind: if is_bridge {
            "bridge"
        } else if has(Device::LAYER3) {
            "L3"
        } else {
            "L2"
        },
        bridge: (device.bridge != 0)
            .then(|| name_of(device.bridge).unwrap_or_else(|| device.bridge.to_string())),
        masquerade_v4: (shows(IpFamily::V4) && v4 != AddrV4::ZERO).then(|| v4.into()),
        masquerade_v6: (shows(IpFamily::V6) && v6 != AddrV6::ZERO).then(|| v6.into()),
        uplink: has(Device::UPLINK),
        covered: has(Device::COVERED),
        pods: has(Device::LOCAL_CLIENTS),
        pod_routes: has(Device::POD_ROUTES),
        attached: ours
            .find(|program| program.ours)
            .map(|program| program.mode.name()),
        ingress: rows(|programs| &programs.ingress),
        egress: rows(|programs| &programs.egress),
    }
}

/// Devices that the agent has described to the programs, with what is on them.
pub(super) fn read(pins: &Pins, family: Option<IpFamily>) -> anyhow::Result<Vec<DeviceRow>> {
    let devices = DeviceTable::open(pins)?.read()?;
    let here = is_our_namespace(pins)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let hooks = Hooks::open(pins.root())?;
            // Ifindexes of another namespace say nothing about devices here.
            let links = if here {
                Netlink::open()?.links().await?
            } else {
                Vec::new()
            };
            let mut rows = Vec::new();
            let mut forbidden = None;
            for &(ifindex, device) in &devices {
                let link = links.iter().find(|link| link.ifindex == ifindex);
                let programs = match link {
                    Some(link) => match programs(&hooks, link).await {
                        Ok(programs) => Some(programs),
                        Err(error @ HooksError::Forbidden { .. }) => {
                            forbidden = Some(error);
                            None
                        }
                        Err(error) => return Err(error.into()),
                    },
                    None => Some(DevicePrograms::default()),
                };
                rows.push(row(
                    ifindex,
                    &device,
                    is_bridge(ifindex, &devices),
                    &links,
                    programs.as_ref(),
                    family,
                ));
            }
            if let Some(error) = forbidden {
                warn!("{error}");
            }
            rows.sort_by_key(|row| row.ifindex);
            Ok(rows)
        })
}

async fn programs(hooks: &Hooks, link: &Link) -> Result<DevicePrograms, HooksError> {
    let on = |hook| hooks.programs(&link.name, link.ifindex, hook);
    Ok(DevicePrograms {
        ingress: on(Hook::Ingress).await?,
        egress: on(Hook::Egress).await?,
    })
}

/// Returns whether a row of `DEVICES` is a bridge that is described for its ports' sake
/// and has no programs of its own.
pub(crate) fn is_bridge(ifindex: u32, devices: &[(u32, Device)]) -> bool {
    devices.iter().any(|(_, device)| device.bridge == ifindex)
}

/// Returns whether the agent's devices are those of this process' network namespace.
pub(crate) fn is_our_namespace(pins: &Pins) -> anyhow::Result<bool> {
    let config = load::open_config(pins, Access::Read)?;
    Ok(config.get(0).map(|config| config.netns_cookie) == Some(sys::netns::cookie()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::attach::Mode,
        node::devices::{Layer, LinkKind},
    };

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            layer: Layer::Ethernet,
            master: None,
            kind: LinkKind::Other,
            mac: [0; 6],
            vlan: None,
            is_up: true,
        }
    }

    fn program(id: u32, name: &str, ours: bool) -> Attached {
        Attached {
            id,
            name: name.to_owned(),
            ours,
            mode: Mode::Tcx,
        }
    }

    fn cells(links: &[Link], family: Option<IpFamily>) -> String {
        let device = Device {
            bridge: 3,
            masquerade_v4: Ipv4Addr::new(10, 0, 0, 1).into(),
            masquerade_v6: Ipv6Addr::LOCALHOST.into(),
            flags: Device::UPLINK | Device::COVERED,
            ..Device::default()
        };
        let programs = DevicePrograms {
            ingress: vec![program(5, "ingress", true), program(6, "ingress", false)],
            egress: Vec::new(),
        };
        row(4, &device, false, links, Some(&programs), family)
            .cells()
            .join(" ")
    }

    #[test]
    fn tells_our_programs_from_those_of_others() {
        let links = [link(3, "cni0"), link(4, "veth1")];
        assert_eq!(
            cells(&links, None),
            "veth1 4 L2 cni0 10.0.0.1 ::1 uplink,covered tcx ingress(ours),ingress(id=6) -"
        );
    }

    #[test]
    fn shows_one_family_and_devices_without_names() {
        assert!(cells(&[], Some(IpFamily::V6)).starts_with("- 4 L2 3 - ::1 uplink,covered tcx"));
        assert!(
            cells(&[], Some(IpFamily::V4)).starts_with("- 4 L2 3 10.0.0.1 - uplink,covered tcx")
        );
    }

    #[test]
    fn no_address_is_no_address() {
        let cells = |is_bridge| {
            let device = Device::default();
            let programs = DevicePrograms::default();
            let row = row(9, &device, is_bridge, &[], Some(&programs), None);
            row.cells().join(" ")
        };
        assert_eq!(cells(false), "- 9 L2 - - - - - - -");
        assert_eq!(cells(true), "- 9 bridge - - - - - - -");
    }

    #[test]
    fn a_bridge_is_known_by_its_ports() {
        let port = Device {
            bridge: 3,
            ..Device::default()
        };
        let devices = [(3, Device::default()), (4, port)];
        assert!(is_bridge(3, &devices) && !is_bridge(4, &devices));
    }

    #[test]
    fn programs_that_may_not_be_seen_are_not_called_absent() {
        let row = row(9, &Device::default(), false, &[], None, None);
        assert_eq!(row.cells().join(" "), "- 9 L2 - - - - ? ? ?");
    }
}

//! The facts about the host that `check` judges.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::{
    cli::PathArgs,
    commands::check::{
        firewall::Firewall,
        hooks::DeviceHook,
        host::{BpfMount, Cgroup, Host, Stack},
        reach::Reach,
    },
    commands::get::devices,
    dataplane::{
        attach::Hook, devices::DeviceTable, hooks::Hooks, other_layouts::OtherLayout, pins::Pins,
    },
    model::IpFamily,
    node::netlink::Netlink,
    ownership, sys,
};
use proxy_common::table::Table;

/// Kernel types for BPF tools.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// The usual mount point of the bpf file system; `run` mounts one there if there is none.
const BPF_MOUNT: &str = "/sys/fs/bpf";

/// All that is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub host: Host,
    pub reach: Reach,
    pub firewall: Firewall,
    /// The hooks of the attached devices, or the reason why they are not known.
    pub hooks: Result<Vec<DeviceHook>, String>,
}

impl Facts {
    /// Asks the host. A fact that cannot be found out counts as absent, except
    /// programs of others.
    pub fn gather(paths: &PathArgs) -> Self {
        Self {
            host: host(paths),
            reach: reach(),
            firewall: firewall(),
            hooks: hooks(&Pins::new(&paths.pins.bpf_root)).map_err(|error| format!("{error:#}")),
        }
    }
}

fn host(paths: &PathArgs) -> Host {
    let root = &paths.pins.bpf_root;
    let [has_v4, has_v6] = IpFamily::ALL.map(has_address);
    Host {
        privileged: sys::capabilities::require_privileges().is_ok(),
        kernel: sys::kernel::version(),
        is_real_time: sys::kernel::is_real_time(),
        btf: Path::new(BTF).exists(),
        bpf_root: root.clone(),
        bpf_mount: bpf_mount(root),
        cgroup: cgroup(paths.cgroup_root.as_deref()),
        v4: Stack {
            forwards: sysctl("net/ipv4/ip_forward"),
            has_address: has_v4,
        },
        v6: Stack {
            forwards: sysctl("net/ipv6/conf/all/forwarding"),
            has_address: has_v6,
        },
        owner: ownership::owner(root).map(|owner| owner.to_string()),
        other_layouts: other_layouts(root),
    }
}

/// Returns whether others can reach an address of this host; true if that cannot be found
/// out.
fn has_address(family: IpFamily) -> bool {
    let listed = in_runtime(async { Ok(Netlink::open()?.addresses().await?) });
    listed.ok().is_none_or(|addresses| {
        addresses.iter().any(|address| {
            IpFamily::of(address.ip) == family && !address.link_local && !address.ip.is_loopback()
        })
    })
}

fn bpf_mount(root: &Path) -> BpfMount {
    let existing = root.ancestors().find(|path| path.exists());
    if existing.is_some_and(sys::filesystems::is_bpf) {
        BpfMount::Mounted
    } else if root.starts_with(BPF_MOUNT) && Path::new(BPF_MOUNT).exists() {
        BpfMount::Mountable
    } else {
        BpfMount::Other
    }
}

fn cgroup(given: Option<&Path>) -> Cgroup {
    match given {
        Some(path) if is_cgroup2(path) => Cgroup::Found(path.to_owned()),
        Some(path) => Cgroup::NotOne(path.to_owned()),
        None => sys::filesystems::cgroup2_mount().map_or(Cgroup::None, Cgroup::Found),
    }
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Returns whether a sysctl is on; `None` if this kernel does not have it.
fn sysctl(name: &str) -> Option<bool> {
    let value = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(value.trim() != "0")
}

/// Folders of tables that this agent does not read, and links in them.
fn other_layouts(root: &Path) -> Vec<(PathBuf, usize)> {
    let layouts = OtherLayout::find(&Pins::new(root)).into_iter();
    layouts
        .map(|layout| (layout.path().to_owned(), layout.links()))
        .collect()
}

/// Reads the host's routes. A failed query counts as an empty answer.
fn reach() -> Reach {
    let routes = in_runtime(async {
        let netlink = Netlink::open()?;
        let links = netlink.links().await?;
        let gateways = netlink.main_routes().await?.gateways;
        let names = links.into_iter();
        let names = names.filter(|link| gateways.contains(&link.ifindex));
        Ok(Reach {
            gateways: names.map(|link| link.name).collect(),
            default_v4: Some(netlink.has_default_route(IpFamily::V4).await?),
            default_v6: Some(netlink.has_default_route(IpFamily::V6).await?),
            strict: Vec::new(),
        })
    });
    let routes = routes.unwrap_or_default();
    Reach {
        strict: strict_devices(),
        default_v4: routes.default_v4.filter(|_| has_address(IpFamily::V4)),
        default_v6: routes.default_v6.filter(|_| has_address(IpFamily::V6)),
        ..routes
    }
}

/// Devices with a strict reverse path filter (1). Of a device's own setting and
/// that of all, the higher one counts; 2 is loose.
fn strict_devices() -> Vec<String> {
    const FOLDER: &str = "/proc/sys/net/ipv4/conf";
    let setting = |device: &str| -> u8 {
        let path = Path::new(FOLDER).join(device).join("rp_filter");
        let value = fs::read_to_string(path).unwrap_or_default();
        value.trim().parse().unwrap_or(0)
    };
    let all = setting("all");
    let entries = fs::read_dir(FOLDER).into_iter().flatten();
    let mut devices: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !["all", "default", "lo"].contains(&name.as_str()))
        .filter(|name| setting(name).max(all) == 1)
        .collect();
    devices.sort();
    devices
}

fn in_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

fn firewall() -> Firewall {
    Firewall {
        iptables_v4: output_of_all(&["iptables-save", "iptables-legacy-save"]),
        iptables_v6: output_of_all(&["ip6tables-save", "ip6tables-legacy-save"]),
        nft: output("nft", &["-j", "list", "ruleset"]),
        ipvs: Path::new("/proc/sys/net/ipv4/conf/kube-ipvs0").exists(),
    }
}

/// Returns the joined output of the given programs, as far as they are installed.
fn output_of_all(programs: &[&str]) -> Option<String> {
    programs
        .iter()
        .filter_map(|program| output(program, &[]))
        .reduce(|all, more| all + &more)
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

/// Returns the programs on the devices that the agent has attached; empty without an agent.
fn hooks(pins: &Pins) -> anyhow::Result<Vec<DeviceHook>> {
    if !pins.map(Table::Devices.name()).try_exists()? {
        return Ok(Vec::new());
    }
    let attached = DeviceTable::open(pins)?.read()?;
    if !devices::is_our_namespace(pins)? {
        return Ok(Vec::new());
    }
    in_runtime(async {
        let hooks = Hooks::open(pins.root())?;
        let mut found = Vec::new();
        for link in Netlink::open()?.links().await? {
            let known = attached.iter().any(|(ifindex, _)| *ifindex == link.ifindex);
            if !known || devices::is_bridge(link.ifindex, &attached) {
                continue;
            }
            for hook in Hook::BOTH {
                found.push(DeviceHook {
                    device: link.name.clone(),
                    hook,
                    programs: hooks.programs(&link.name, link.ifindex, hook).await?,
                });
            }
        }
        Ok(found)
    })
}

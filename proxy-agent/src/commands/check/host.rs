//! Privileges, kernel, file systems and forwarding.

use std::path::PathBuf;

use crate::{
    commands::check::Finding,
    dataplane::{attach::TCX_SINCE, load::BPF_F_IPV6_SINCE},
    sys::{self, kernel::MINIMUM_KERNEL},
};

/// The host's properties apart from routes and netfilter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub privileged: bool,
    pub kernel: (u32, u32),
    /// The kernel was built as `PREEMPT_RT`.
    pub is_real_time: bool,
    /// The kernel describes its own types.
    pub btf: bool,
    pub bpf_root: PathBuf,
    pub bpf_mount: BpfMount,
    pub cgroup: Cgroup,
    pub v4: Stack,
    pub v6: Stack,
    /// The agent that writes the tables, if one does.
    pub owner: Option<String>,
    /// Folders of other layout versions, and how many of their programs are
    /// attached.
    pub other_layouts: Vec<(PathBuf, usize)>,
}

/// One family on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// True if the host forwards packets; `None` if the kernel does not have the family.
    pub forwards: Option<bool>,
    /// The host has an address of the family that others can reach.
    pub has_address: bool,
}

/// The state of the file system that the pins go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpfMount {
    /// A bpf file system.
    Mounted,
    /// No bpf file system yet, but the agent can mount one.
    Mountable,
    /// Another file system.
    Other,
}

/// The cgroup whose processes are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    Found(PathBuf),
    /// The folder that was asked for is not in a cgroup2 file system.
    NotOne(PathBuf),
    None,
}

/// Features that newer kernels have, and the substitutes on older ones.
const FEATURES: [Feature; 2] = [
    Feature {
        name: "tcx",
        since: TCX_SINCE,
        instead: "filters of the clsact qdisc are used",
    },
    Feature {
        name: "checksum helper for IPv6 (BPF_F_IPV6)",
        since: BPF_F_IPV6_SINCE,
        instead: "checksums are corrected afterwards",
    },
];

struct Feature {
    name: &'static str,
    since: (u32, u32),
    instead: &'static str,
}

/// Judges the host.
pub fn evaluate(host: &Host) -> Vec<Finding> {
    let mut findings = vec![privileges(host)];
    findings.extend(kernel(host.kernel));
    findings.extend(real_time(host));
    findings.push(btf(host));
    findings.push(bpf_root(host));
    findings.push(cgroup(&host.cgroup));
    findings.extend(owner(host));
    findings.extend(other_layouts(host));
    findings.push(forwarding("IPv4", "net.ipv4.ip_forward", host.v4));
    findings.push(forwarding("IPv6", "net.ipv6.conf.all.forwarding", host.v6));
    findings
}

fn privileges(host: &Host) -> Finding {
    if host.privileged {
        Finding::ok("privileges to load eBPF programs")
    } else {
        Finding::fail(
            "no privileges to load eBPF programs",
            "run as root, or with the capabilities BPF, NET_ADMIN and PERFMON",
        )
    }
}

fn kernel(version: (u32, u32)) -> Vec<Finding> {
    let name = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    if version < MINIMUM_KERNEL {
        return vec![Finding::fail(
            format!("kernel {} is too old", name(version)),
            format!("{} or later is needed", name(MINIMUM_KERNEL)),
        )];
    }
    let features = FEATURES.iter().map(|feature| {
        let (is, since) = (name(version), name(feature.since));
        Finding::ok(if version >= feature.since {
            format!("kernel {is} has {} (since {since})", feature.name)
        } else {
            format!(
                "kernel {is} has no {} (since {since}), {}",
                feature.name, feature.instead
            )
        })
    });
    let supported = Finding::ok(format!(
        "kernel {} ({} or later is needed)",
        name(version),
        name(MINIMUM_KERNEL)
    ));
    std::iter::once(supported).chain(features).collect()
}

fn real_time(host: &Host) -> Option<Finding> {
    sys::kernel::preempts_programs(host.kernel, host.is_real_time).then(|| {
        Finding::fail(
            "the kernel is a real-time one (PREEMPT_RT): packets may preempt each other on a CPU",
            "the programs keep what they work on in memory of the CPU's; boot another kernel",
        )
    })
}

fn btf(host: &Host) -> Finding {
    if host.btf {
        Finding::ok("types of the kernel (BTF)")
    } else {
        Finding::warn(
            "no types of the kernel (BTF)",
            "bpftool and tracing tools show less; kernels with CONFIG_DEBUG_INFO_BTF have them",
        )
    }
}

fn bpf_root(host: &Host) -> Finding {
    let path = host.bpf_root.display();
    match host.bpf_mount {
        BpfMount::Mounted => Finding::ok(format!("{path} is in a bpf file system")),
        BpfMount::Mountable => {
            Finding::ok(format!("no bpf file system at {path} yet, `run` mounts it"))
        }
        BpfMount::Other => Finding::fail(
            format!("{path} is not in a bpf file system"),
            "`mount -t bpf bpf /sys/fs/bpf`, and give a --bpf-root below it",
        ),
    }
}

fn cgroup(cgroup: &Cgroup) -> Finding {
    match cgroup {
        Cgroup::Found(path) => Finding::ok(format!("cgroup2 at {}", path.display())),
        Cgroup::NotOne(path) => Finding::fail(
            format!("{} is not in a cgroup2 file system", path.display()),
            "give another --cgroup-root",
        ),
        Cgroup::None => Finding::warn(
            "no cgroup2 file system is mounted",
            "`mount -t cgroup2 none /sys/fs/cgroup`",
        ),
    }
}

fn owner(host: &Host) -> Option<Finding> {
    let owner = host.owner.as_ref()?;
    let path = host.bpf_root.display();
    Some(Finding::ok(format!("the owner of {path} is {owner}")))
}

fn other_layouts(host: &Host) -> impl Iterator<Item = Finding> {
    host.other_layouts.iter().map(|(path, links)| {
        Finding::warn(
            format!(
                "another version has tables at {}, and {links} programs in place",
                path.display()
            ),
            "an agent that runs replaces them; without one, `proxy-agent cleanup` removes all versions",
        )
    })
}

/// A host need not have both families.
fn forwarding(family: &str, name: &str, stack: Stack) -> Finding {
    match (stack.forwards, stack.has_address) {
        (Some(true), _) => Finding::ok(format!("{family} is forwarded")),
        (Some(false), true) => Finding::fail(
            format!(
                "{family} is not forwarded: pods, and processes of this node, reach no endpoint on another device"
            ),
            format!("`sysctl -w {name}=1`"),
        ),
        (_, false) => Finding::ok(format!(
            "{family} is not forwarded, and this host has no {family} address"
        )),
        (None, true) => Finding::warn(
            format!("this kernel has no {family}"),
            format!("Services of that family cannot be reached; boot with {family} enabled"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::commands::check::Level;

    const FORWARDS: Stack = Stack {
        forwards: Some(true),
        has_address: true,
    };
    const OFF: Stack = Stack {
        forwards: Some(false),
        ..FORWARDS
    };
    const ABSENT: Stack = Stack {
        forwards: None,
        ..FORWARDS
    };

    fn good() -> Host {
        Host {
            privileged: true,
            kernel: (6, 16),
            is_real_time: false,
            btf: true,
            bpf_root: "/sys/fs/bpf/tandem".into(),
            bpf_mount: BpfMount::Mounted,
            cgroup: Cgroup::Found("/sys/fs/cgroup".into()),
            v4: FORWARDS,
            v6: FORWARDS,
            owner: Some("`proxy-agent run`".to_owned()),
            other_layouts: Vec::new(),
        }
    }

    #[test]
    fn nothing_is_in_the_way_of_a_good_host() {
        let findings = evaluate(&good());
        assert!(
            findings.iter().all(|finding| finding.level == Level::Ok),
            "{findings:?}"
        );
    }

    #[rstest]
    #[case::user(Host { privileged: false, ..good() }, Level::Fail, "run as root")]
    #[case::old_kernel(Host { kernel: (5, 10), ..good() }, Level::Fail, "5.15 or later")]
    #[case::real_time(Host { is_real_time: true, ..good() }, Level::Fail, "PREEMPT_RT")]
    #[case::no_btf(Host { btf: false, ..good() }, Level::Warn, "CONFIG_DEBUG_INFO_BTF")]
    #[case::elsewhere(
        Host { bpf_mount: BpfMount::Other, ..good() },
        Level::Fail,
        "mount -t bpf",
    )]
    #[case::no_cgroup2(Host { cgroup: Cgroup::None, ..good() }, Level::Warn, "mount -t cgroup2")]
    #[case::wrong_cgroup(
        Host { cgroup: Cgroup::NotOne("/tmp".into()), ..good() },
        Level::Fail,
        "--cgroup-root",
    )]
    #[case::other_layout(
        Host { other_layouts: vec![("/sys/fs/bpf/tandem/v0".into(), 4)], ..good() },
        Level::Warn,
        "tandem/v0, and 4 programs in place: an agent",
    )]
    #[case::v4_not_forwarded(
        Host { v4: OFF, ..good() },
        Level::Fail,
        "sysctl -w net.ipv4.ip_forward=1",
    )]
    #[case::v6_not_forwarded(
        Host { v6: OFF, ..good() },
        Level::Fail,
        "sysctl -w net.ipv6.conf.all.forwarding=1",
    )]
    #[case::no_v6(Host { v6: ABSENT, ..good() }, Level::Warn, "no IPv6")]
    fn says_what_is_wrong_and_what_to_do(
        #[case] host: Host,
        #[case] level: Level,
        #[case] text: &str,
    ) {
        let findings = evaluate(&host);
        let bad: Vec<_> = findings
            .iter()
            .filter(|finding| finding.level != Level::Ok)
            .collect();
        let [finding] = bad[..] else {
            panic!("one finding, not {bad:?}");
        };
        assert_eq!(finding.level, level);
        assert!(finding.to_string().contains(text), "{finding}");
    }

    /// An IPv4-only host, and an IPv6-only one.
    #[test]
    fn a_family_that_is_not_used_is_not_missed() {
        for forwards in [None, Some(false)] {
            let unused = Stack {
                forwards,
                has_address: false,
            };
            for host in [
                Host {
                    v4: unused,
                    ..good()
                },
                Host {
                    v6: unused,
                    ..good()
                },
            ] {
                let findings = evaluate(&host);
                let is_ok = |finding: &Finding| finding.level == Level::Ok;
                assert!(findings.iter().all(is_ok), "{findings:?}");
            }
        }
    }

    #[rstest]
    #[case::oldest((5, 15), ["has no tcx (since 6.6)", "has no checksum helper"])]
    #[case::tcx((6, 6), ["has tcx", "has no checksum helper"])]
    #[case::both((6, 16), ["has tcx", "has checksum helper"])]
    fn older_kernels_do_with_less(#[case] version: (u32, u32), #[case] expected: [&str; 2]) {
        let findings = kernel(version);
        for (finding, expected) in findings[1..].iter().zip(expected) {
            assert_eq!(finding.level, Level::Ok);
            assert!(finding.what.contains(expected), "{finding}");
        }
    }
}

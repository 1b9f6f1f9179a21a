//! The client that opens a flow: traffic policies and masquerading depend on who it is.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
        BPF_FIB_LKUP_RET_SUCCESS,
    },
    btf_maps::lpm_trie::Key,
};
use proxy_common::{
    backend::Backend,
    config::Config,
    device::Device,
    explain::{Client, Masquerade, Question},
    flow::Flow,
    frontend::Frontend,
    local_addr::LocalAddr,
    source_range::SourceRange,
};

use crate::{
    maps::{node, tables::Tables},
    packet::{barrier::opaque, headers::Ip, skb::Skb},
    route::{self, Route},
};

/// Tells who the sender of a packet is.
#[inline(never)]
pub fn of<F: Tables>(client: &F::Addr, question: Question) -> Client {
    if question.is_of_host() || local_addr::<F>(client).is_some() {
        return Client::Host;
    }
    let Some(config) = node::config() else {
        return Client::External;
    };
    let is_pod = if config.flags & Config::DETECT_DEVICE != 0 {
        question.device_flags & Device::LOCAL_CLIENTS != 0
    } else {
        F::pods(config).is_some_and(|pods| pods.contains(client))
    };
    if is_pod {
        Client::Pod
    } else {
        Client::External
    }
}

/// Flags of the device with this ifindex; none if it has no programs.
#[inline(always)]
pub fn device_flags(ifindex: u32) -> u32 {
    node::device(ifindex).map_or(0, |device| device.flags)
}

/// Makes the frontend use the set that this client gets: pods and this host are exempt
/// from an external policy Local (S39). Returns whether the policy is Local all the same.
#[inline(never)]
pub fn apply_policy(frontend: &mut Frontend, client: Client) -> bool {
    let local = frontend.flags & Frontend::LOCAL_SET != 0;
    if frontend.kind != Frontend::CLUSTER_IP && client != Client::External {
        frontend.flags &= !Frontend::LOCAL_SET;
    }
    local
}

/// Returns whether the address is one of the loopback: nobody else may connect to it,
/// though it takes NodePorts of this node's own sockets (S56, CVE-2020-8558).
#[inline(never)]
pub fn is_loopback<F: Tables>(addr: &F::Addr) -> bool {
    local_addr::<F>(addr).is_some_and(|local| local.flags & LocalAddr::LOOPBACK != 0)
}

/// The entry of the local routing table for an address; none if it is not one
/// of this node.
#[inline(always)]
pub fn local_addr<F: Tables>(addr: &F::Addr) -> Option<LocalAddr> {
    let key = Key::new(size_of::<F::Addr>() as u32 * 8, *addr);
    F::local_addrs().get(&key).copied()
}

/// Returns whether the sender of a packet may use the frontend that it is addressed to
/// (S58).
#[inline(never)]
pub fn is_sender_admitted<F: Tables>(frontend: Frontend, ip: &Ip<F::Addr>) -> bool {
    is_admitted::<F>(frontend, &ip.src, &ip.dst)
}

/// Returns whether this client may use a frontend, which has the address `dst` (S58).
#[inline(always)]
pub fn is_admitted<F: Tables>(frontend: Frontend, client: &F::Addr, dst: &F::Addr) -> bool {
    let Frontend { service, flags, .. } = frontend;
    if flags & Frontend::SOURCE_RANGES == 0 || flags & Frontend::ALLOW_ITSELF != 0 && client == dst
    {
        return true;
    }
    let range = SourceRange::new(service, *client);
    let key = Key::new(size_of::<SourceRange<F::Addr>>() as u32 * 8, range);
    F::source_ranges().get(&key).is_some()
}

/// Tells whose address the backend of a flow of this client's to this kind of frontend
/// sees.
///
/// A cluster IP's backend sees pods as they are and others masqueraded (S63);
/// an external frontend's sees masqueraded clients under policy Cluster (S64)
/// and their own addresses under policy Local, this host's own apart (S39). A
/// pod that reaches itself is masqueraded always (S65).
///
/// Under policy Cluster masquerading only serves to get the replies back to
/// this node. Where they come here anyway, because client or backend is a pod
/// of this node, the client keeps its address, which kube-proxy cannot do. And
/// where they would not, because the detector takes a pod of another node for
/// a local one, it is masqueraded also under policy Local (S69).
///
/// This host's own flows always are: their replies have to be told from those to its
/// sockets (E5).
#[inline(always)]
pub fn masquerade<F: Route>(
    skb: &Skb,
    addr: &F::Addr,
    flow: &Flow<F::Addr>,
    kind: u8,
    question: Question,
    client: Client,
    local_policy: bool,
) -> Masquerade {
    if *addr == flow.backend_addr {
        return Masquerade::Itself;
    }
    match opaque(by_policy::<F>(kind, question, client, local_policy)) {
        Some(masquerade) => masquerade,
        None if !is_here::<F>(flow) => Masquerade::BackendElsewhere,
        None if !question.has_none(Question::OFFLINE) => Masquerade::BackendIsHere,
        None => opaque(by_route::<F>(skb, addr, &flow.backend_addr)),
    }
}

/// Tells whose address a backend sees, unless that depends on which backend it is.
#[inline(never)]
fn by_policy<F: Tables>(
    kind: u8,
    question: Question,
    client: Client,
    local_policy: bool,
) -> Option<Masquerade> {
    if question.is_of_host() {
        return Some(Masquerade::Host);
    }
    if kind == Frontend::CLUSTER_IP {
        let Some(config) = node::config() else {
            return Some(Masquerade::NoDetector);
        };
        let detector = config.flags & Config::DETECT_DEVICE != 0 || F::pods(config).is_some();
        return Some(if config.flags & Config::MASQUERADE_ALL != 0 {
            Masquerade::All
        } else if client == Client::Pod {
            Masquerade::Pod
        } else if detector {
            Masquerade::NotPod
        } else {
            Masquerade::NoDetector
        });
    }
    if client == Client::Host {
        Some(Masquerade::Host)
    } else if local_policy && client == Client::External {
        Some(Masquerade::LocalPolicy)
    } else if is_pod_device(question.device_flags) {
        Some(Masquerade::ClientIsHere)
    } else {
        None
    }
}

/// Returns whether what is reached by a device with these flags are pods of this node,
/// all of whose packets pass the programs. A device that leads nowhere that is
/// known is no such device: a second network of the node may be behind it.
#[inline(always)]
fn is_pod_device(flags: u32) -> bool {
    const WANTED: u32 = Device::COVERED | Device::POD_ROUTES;
    flags & WANTED == WANTED
}

/// Returns whether the flow's backend is on this node.
#[inline(always)]
fn is_here<F: Tables>(flow: &Flow<F::Addr>) -> bool {
    F::backends()
        .get(flow.backend)
        .is_some_and(|backend| backend.flags & Backend::<F::Addr>::HERE != 0)
}

/// Tells whose address a backend on this node sees: the client's if its replies pass one
/// of our hooks, whoever they are for (E19), because what leads to it is a device with
/// programs.
#[inline(never)]
fn by_route<F: Route>(skb: &Skb, client: &F::Addr, backend: &F::Addr) -> Masquerade {
    let mut route = F::route(client, backend, skb.ifindex());
    match route::look_up(skb, &mut route, 0) {
        // This packet may be too long for the device; those that follow are not.
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            let flags = device_flags(route.ifindex);
            if is_pod_device(flags) {
                Masquerade::BackendIsHere
            } else if flags & Device::COVERED == 0 {
                Masquerade::NoPrograms
            } else {
                Masquerade::NotPodDevice
            }
        }
        // This host itself: its replies leave by the client's device.
        BPF_FIB_LKUP_RET_NOT_FWDED if local_addr::<F>(backend).is_some() => {
            Masquerade::BackendIsNode
        }
        _ => Masquerade::NoRoute,
    }
}

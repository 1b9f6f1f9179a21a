//! Who opens a flow: what traffic policies and masquerading depend on.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
        BPF_FIB_LKUP_RET_SUCCESS,
    },
    btf_maps::lpm_trie::Key,
};
use proxy_common::{
    backend::Backend, config::Config, device::Device, explain::Client, frontend::Frontend,
    local_addr::LocalAddr, source_range::SourceRange,
};

use crate::{
    maps::{node, scratch::Scratch, tables::Tables},
    packet::skb::Skb,
    route::{self, Route},
};

/// Tells who sends the packet in scratch memory, which came in by a device
/// with these flags. `host`: it came from a process of this host.
#[inline(never)]
pub fn of<F: Tables>(scratch: &Scratch<F::Addr>, device_flags: u32, host: bool) -> Client {
    let client = &scratch.headers.ip.src;
    if host || local_addr::<F>(client).is_some() {
        return Client::Host;
    }
    let Some(config) = node::config() else {
        return Client::External;
    };
    let is_pod = if config.flags & Config::DETECT_DEVICE != 0 {
        device_flags & Device::LOCAL_CLIENTS != 0
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

/// Makes the frontend in scratch memory use the set that this client gets:
/// pods and this host are exempt from an external policy Local (S39). Returns
/// whether the policy is Local all the same.
#[inline(never)]
pub fn apply_policy<A>(scratch: &mut Scratch<A>, client: Client) -> bool {
    let local = scratch.frontend.flags & Frontend::LOCAL_SET != 0;
    if scratch.frontend.kind != Frontend::CLUSTER_IP && client != Client::External {
        scratch.frontend.flags &= !Frontend::LOCAL_SET;
    }
    local
}

/// Returns whether the address is one of the loopback: nobody else may connect to it,
/// though it takes NodePorts of this node's own sockets (S56, CVE-2020-8558).
#[inline(never)]
pub fn is_loopback<F: Tables>(addr: &F::Addr) -> bool {
    local_addr::<F>(addr).is_some_and(|local| local.flags & LocalAddr::LOOPBACK != 0)
}

/// What the local routing table says of an address; nothing if it is not one
/// of this node.
#[inline(always)]
pub fn local_addr<F: Tables>(addr: &F::Addr) -> Option<LocalAddr> {
    let key = Key::new(size_of::<F::Addr>() as u32 * 8, *addr);
    F::local_addrs().get(&key).copied()
}

/// Returns whether the client in scratch memory may use the frontend there (S58).
#[inline(never)]
pub fn is_sender_admitted<F: Tables>(scratch: &Scratch<F::Addr>) -> bool {
    let ip = &scratch.headers.ip;
    is_admitted::<F>(scratch.frontend, &ip.src, &ip.dst)
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

/// Whether the backend must not see the client's address.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Masquerade {
    No,
    Yes,
    UnlessRepliesPass,
}

/// Returns whether the scratch flow's backend must not see the client's address.
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
#[inline(never)]
pub fn masquerade<F: Tables>(
    scratch: &Scratch<F::Addr>,
    client: Client,
    local_policy: bool,
    device_flags: u32,
) -> Masquerade {
    if scratch.headers.ip.src == scratch.flow.backend_addr {
        return Masquerade::Yes;
    }
    if scratch.frontend.kind == Frontend::CLUSTER_IP {
        let Some(config) = node::config() else {
            return Masquerade::No;
        };
        let detector = config.flags & Config::DETECT_DEVICE != 0 || F::pods(config).is_some();
        return if config.flags & Config::MASQUERADE_ALL != 0 || detector && client != Client::Pod {
            Masquerade::Yes
        } else {
            Masquerade::No
        };
    }
    if client == Client::Host {
        Masquerade::Yes
    } else if local_policy && client == Client::External || is_pod_device(device_flags) {
        Masquerade::No
    } else {
        Masquerade::UnlessRepliesPass
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

/// Returns whether the scratch flow's backend is on this node.
#[inline(always)]
pub fn is_here<F: Tables>(scratch: &Scratch<F::Addr>) -> bool {
    F::backends()
        .get(scratch.flow.backend)
        .is_some_and(|backend| backend.flags & Backend::<F::Addr>::HERE != 0)
}

/// Returns whether the replies of the scratch flow's backend pass one of our hooks,
/// whoever they are for (E19): it is on this node, and what leads to it is a
/// device with programs.
#[inline(never)]
pub fn replies_pass<F: Route>(skb: &Skb, scratch: &Scratch<F::Addr>) -> bool {
    if !is_here::<F>(scratch) {
        return false;
    }
    let mut route = F::route(
        &scratch.headers.ip.src,
        &scratch.flow.backend_addr,
        skb.ifindex(),
    );
    match route::look_up(skb, &mut route, 0) {
        // This packet may be too long for the device; those that follow are not.
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            is_pod_device(device_flags(route.ifindex))
        }
        // This host itself: its replies leave by the client's device.
        BPF_FIB_LKUP_RET_NOT_FWDED => local_addr::<F>(&scratch.flow.backend_addr).is_some(),
        _ => false,
    }
}

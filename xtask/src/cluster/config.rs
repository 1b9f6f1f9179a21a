//! The files that the programs of a node read. JSON where the program takes
//! YAML, of which it is a part.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    addresses, images,
    place::node_name,
    spec::{Cni, Families, Family, Spec},
};

/// MTU of a device of the underlay, and of one with the header of a tunnel.
const MTU: u16 = 1500;
const MTU_IN_TUNNEL: u16 = 1430;

/// kubelet's.
pub(crate) fn kubelet(families: Families, authority: &Path) -> Value {
    let dns: Vec<_> = families.list().map(addresses::dns).collect();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": authority},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": dns[..1],
        "clusterDomain": "cluster.local",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        // Lowering it takes a capability that containers do not have.
        "oomScoreAdj": 0,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "resolvConf": "/run/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    })
}

/// containerd's.
pub(crate) fn containerd() -> String {
    let pause = images::PAUSE;
    format!(
        "\
version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
disabled_plugins = [
  'io.containerd.internal.v1.opt',
  'io.containerd.internal.v1.tracing',
  'io.containerd.tracing.processor.v1.otlp',
]

[grpc]
address = '/run/containerd/containerd.sock'

[plugins.'io.containerd.cri.v1.images']
snapshotter = 'overlayfs'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{pause}'

[plugins.'io.containerd.cri.v1.runtime']
disable_apparmor = true
restrict_oom_score_adj = true
tolerate_missing_hugetlb_controller = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/usr/lib/cni']
conf_dir = '/run/cni/net.d'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
"
    )
}

/// The list of network plugins of a node.
pub(crate) fn plugins(spec: &Spec, number: u8) -> Value {
    let mtu = match spec.cni {
        Cni::FlannelVxlan => MTU_IN_TUNNEL,
        _ => MTU,
    };
    let ranges: Vec<_> = spec
        .families
        .list()
        .map(|family| range(spec.cni, family, number))
        .collect();
    let routes: Vec<_> = spec
        .families
        .list()
        .map(|family| json!({"dst": anywhere(family)}))
        .collect();
    let ipam = json!({
        "type": "host-local",
        "dataDir": "/run/cni/addresses",
        "ranges": ranges,
        "routes": routes,
    });
    let network = match spec.cni {
        Cni::Ptp => json!({"type": "ptp", "mtu": mtu, "ipam": ipam}),
        Cni::Macvlan => {
            json!({"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": ipam})
        }
        Cni::Bridge | Cni::FlannelVxlan | Cni::FlannelHostGw => json!({
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "mtu": mtu,
            "ipam": ipam,
        }),
    };
    let mut plugins = vec![network];
    if spec.cni != Cni::Macvlan {
        plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    json!({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins})
}

/// The addresses that a node gives its pods.
fn range(cni: Cni, family: Family, number: u8) -> Value {
    let pods = addresses::pods(family, cni, number);
    if cni == Cni::Macvlan {
        // All of the underlay is on the pod's link; its own part is this range.
        let (start, end) = addresses::first_and_last(pods);
        return json!([{
            "subnet": addresses::underlay(family).to_string(),
            "rangeStart": start,
            "rangeEnd": end,
            "gateway": addresses::gateway(family),
        }]);
    }
    json!([{"subnet": pods.to_string()}])
}

/// flannel's, if it is what joins the nodes.
pub(crate) fn flannel(spec: &Spec) -> Option<Value> {
    let backend = match spec.cni {
        Cni::FlannelVxlan => json!({"Type": "vxlan"}),
        Cni::FlannelHostGw => json!({"Type": "host-gw"}),
        Cni::Bridge | Cni::Ptp | Cni::Macvlan => return None,
    };
    let mut config = json!({"Backend": backend});
    for (family, enable, network) in [
        (Family::V4, "EnableIPv4", "Network"),
        (Family::V6, "EnableIPv6", "IPv6Network"),
    ] {
        let has = spec.families.list().any(|other| other == family);
        config[enable] = has.into();
        if has {
            config[network] = addresses::all_pods(family, spec.cni).to_string().into();
        }
    }
    Some(config)
}

/// kube-proxy's.
pub(crate) fn kube_proxy(spec: &Spec, number: u8, mode: &str, kubeconfig: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig},
        "mode": mode,
        "clusterCIDR": spec.families.join(|family| addresses::all_pods(family, spec.cni)),
        "detectLocalMode": "NodeCIDR",
        "hostnameOverride": node_name(number),
        // These two settings are the machine's.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "metricsBindAddress": "127.0.0.1:10249",
    })
}

const fn anywhere(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::cluster::spec::Proxy;

    fn spec(cni: Cni, families: &str) -> Spec {
        Spec::new(3, families.parse().unwrap(), cni, Proxy::Tandem, &[]).unwrap()
    }

    #[test]
    fn pods_get_an_address_of_each_family_from_their_nodes_range() {
        let list = plugins(&spec(Cni::Ptp, "ipv6,ipv4"), 2);
        let ipam = &list["plugins"][0]["ipam"];
        let expected = json!([[{"subnet": "fd00:10:244:2::/64"}], [{"subnet": "10.244.2.0/24"}]]);
        assert_eq!(ipam["ranges"], expected);
        assert_eq!(
            ipam["routes"],
            json!([{"dst": "::/0"}, {"dst": "0.0.0.0/0"}])
        );
    }

    #[test]
    fn pods_on_the_underlay_see_all_of_it_on_their_link() {
        let list = plugins(&spec(Cni::Macvlan, "ipv4"), 2);
        let expected = json!([[{
            "subnet": "172.30.0.0/16",
            "rangeStart": "172.30.2.1",
            "rangeEnd": "172.30.2.254",
            "gateway": "172.30.0.1",
        }]]);
        assert_eq!(list["plugins"][0]["ipam"]["ranges"], expected);
        assert_eq!(list["plugins"].as_array().unwrap().len(), 1);
    }

    #[rstest]
    #[case::one("ipv4", json!({
        "Backend": {"Type": "host-gw"},
        "EnableIPv4": true,
        "EnableIPv6": false,
        "Network": "10.244.0.0/16",
    }))]
    #[case::both("ipv4,ipv6", json!({
        "Backend": {"Type": "host-gw"},
        "EnableIPv4": true,
        "EnableIPv6": true,
        "Network": "10.244.0.0/16",
        "IPv6Network": "fd00:10:244::/48",
    }))]
    fn flannel_serves_the_clusters_families(#[case] families: &str, #[case] expected: Value) {
        assert_eq!(flannel(&spec(Cni::FlannelHostGw, families)), Some(expected));
    }

    #[test]
    fn tunnels_leave_room_for_their_header() {
        let mtu = |cni| plugins(&spec(cni, "ipv4"), 1)["plugins"][0]["mtu"].clone();
        assert_eq!(mtu(Cni::FlannelVxlan), 1430);
        assert_eq!(mtu(Cni::FlannelHostGw), 1500);
    }

    #[test]
    fn kube_proxy_knows_the_pods_of_both_families() {
        let config = kube_proxy(
            &spec(Cni::Bridge, "ipv4,ipv6"),
            1,
            "nftables",
            Path::new("/k"),
        );
        assert_eq!(config["clusterCIDR"], "10.244.0.0/16,fd00:10:244::/48");
        assert_eq!(config["hostnameOverride"], "node-1");
    }
}

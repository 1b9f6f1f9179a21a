//! Where the API server is: what the node has says so, in an order that
//! docs/configuration.md tells, and never the Service `kubernetes`, which this agent
//! itself makes work (S92).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use kube::config::Kubeconfig;

/// A load balancer on the node answers at once.
const PATIENCE: Duration = Duration::from_millis(200);

/// Kubeconfigs of kubelets: kubeadm's, Talos', that of kops and EKS, and k3s'.
const KUBELETS: [&str; 4] = [
    "/etc/kubernetes/kubelet.conf",
    "/etc/kubernetes/kubeconfig-kubelet",
    "/var/lib/kubelet/kubeconfig",
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
];

/// Load balancers that distributions run on each node: Talos' `KubePrism`, and k3s' own.
const BALANCERS: [(u16, &str); 2] = [(7445, "KubePrism"), (6444, "k3s' load balancer")];

/// What the node knows of API servers.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// `KUBERNETES_SERVICE_HOST` and `_PORT`.
    pub(super) environment: Option<String>,
    /// The address of the Service `kubernetes`, which the kubelet tells every pod.
    pub(super) cluster_ip: Option<IpAddr>,
    /// The server of kube-proxy's kubeconfig.
    pub(super) kube_proxy: Option<String>,
    /// The servers of kubelets' kubeconfigs, and where they stand.
    pub(super) kubelets: Vec<(String, String)>,
    /// Load balancers that accept connections.
    pub(super) balancers: Vec<(String, String)>,
}

/// An API server that may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) url: String,
    /// Who says so.
    pub(super) from: String,
    /// Whether kube-proxy's kubeconfig has the credentials, too; else the pod's service
    /// account has.
    pub(super) is_kube_proxys: bool,
}

/// The API servers to ask, in this order, and addresses that must not be used.
pub(super) fn candidates(known: &Known) -> (Vec<Candidate>, Vec<String>) {
    let environment = known
        .environment
        .iter()
        .map(|url| (url, "KUBERNETES_SERVICE_HOST", false));
    let kube_proxy = known
        .kube_proxy
        .iter()
        .map(|url| (url, "kube-proxy's kubeconfig", true));
    let kubelets = known
        .kubelets
        .iter()
        .map(|(url, from)| (url, from.as_str(), false));
    let balancers = known
        .balancers
        .iter()
        .map(|(url, from)| (url, from.as_str(), false));
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut refused = Vec::new();
    for (url, from, is_kube_proxys) in environment
        .chain(kube_proxy)
        .chain(kubelets)
        .chain(balancers)
    {
        if is_the_service(url, known.cluster_ip) {
            refused.push(format!("{url} ({from})"));
        } else if !candidates.iter().any(|other| same(&other.url, url)) {
            candidates.push(Candidate {
                url: url.clone(),
                from: from.to_owned(),
                is_kube_proxys,
            });
        }
    }
    (candidates, refused)
}

fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// Returns whether a URL leads to the Service `kubernetes`, by its address or its name.
pub(super) fn is_the_service(url: &str, cluster_ip: Option<IpAddr>) -> bool {
    let Some(host) = host(url) else { return false };
    let names = ["kubernetes.default", "kubernetes.default.svc"];
    names.contains(&host.as_str())
        || host.starts_with("kubernetes.default.svc.")
        || host.parse().is_ok_and(|ip: IpAddr| Some(ip) == cluster_ip)
}

/// The host of a URL, without brackets.
fn host(url: &str) -> Option<String> {
    let uri: hyper::Uri = url.parse().ok()?;
    Some(uri.host()?.trim_matches(['[', ']']).to_owned())
}

impl Known {
    /// Looks around on this node. `kube_proxy` is the server of its kubeconfig.
    pub(super) fn look(kube_proxy: Option<String>) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let kubelets = KUBELETS.into_iter().filter_map(|path| {
            let server = server_of(&Kubeconfig::read_from(Path::new(path)).ok()?)?;
            Some((server, path.to_owned()))
        });
        let balancers = BALANCERS.into_iter().filter_map(|(port, name)| {
            let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
            TcpStream::connect_timeout(&address, PATIENCE).ok()?;
            Some((format!("https://{address}"), name.to_owned()))
        });
        Self {
            environment: environment(&variable),
            cluster_ip: cluster_ip(&variable),
            kube_proxy,
            kubelets: kubelets.collect(),
            balancers: balancers.collect(),
        }
    }
}

/// The URL that the variables of in-cluster clients make.
fn environment(variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
    Some(match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("https://[{ip}]:{port}"),
        _ => format!("https://{host}:{port}"),
    })
}

/// The address of the Service `kubernetes`. The kubelet sets these variables in each
/// container; unlike the host's, nobody has a reason to set them to anything else.
pub(super) fn cluster_ip(variable: &dyn Fn(&str) -> Option<String>) -> Option<IpAddr> {
    let address = variable("KUBERNETES_PORT_443_TCP_ADDR");
    let address = address.or_else(|| {
        let url = variable("KUBERNETES_PORT")?;
        let (_, address) = url.split_once("://")?;
        Some(address.rsplit_once(':')?.0.to_owned())
    })?;
    address.trim_matches(['[', ']']).parse().ok()
}

/// The server of the context that a kubeconfig uses.
pub(super) fn server_of(kubeconfig: &Kubeconfig) -> Option<String> {
    let context = kubeconfig
        .contexts
        .iter()
        .find(|context| Some(&context.name) == kubeconfig.current_context.as_ref())
        .or_else(|| kubeconfig.contexts.first())?;
    let name = &context.context.as_ref()?.cluster;
    let cluster = kubeconfig
        .clusters
        .iter()
        .find(|cluster| cluster.name == *name)?;
    cluster.cluster.as_ref()?.server.clone()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn known() -> Known {
        Known {
            environment: Some("https://10.96.0.1:443".to_owned()),
            cluster_ip: "10.96.0.1".parse().ok(),
            kube_proxy: Some("https://cp.example:6443".to_owned()),
            kubelets: vec![
                (
                    "https://cp.example:6443/".to_owned(),
                    "kubelet.conf".to_owned(),
                ),
                (
                    "https://other.example:6443".to_owned(),
                    "kubelet.conf".to_owned(),
                ),
            ],
            balancers: vec![("https://127.0.0.1:7445".to_owned(), "KubePrism".to_owned())],
        }
    }

    fn urls(known: &Known) -> Vec<String> {
        let (candidates, _) = candidates(known);
        candidates
            .into_iter()
            .map(|candidate| candidate.url)
            .collect()
    }

    /// kube-proxy's kubeconfig, then kubelets', then load balancers of the node; the
    /// Service `kubernetes` never (S92).
    #[test]
    fn servers_are_asked_in_an_order() {
        assert_eq!(
            urls(&known()),
            [
                "https://cp.example:6443",
                "https://other.example:6443",
                "https://127.0.0.1:7445"
            ]
        );
    }

    /// Who sets the variables to an address of their own means that (S92).
    #[test]
    fn a_host_that_is_set_on_purpose_comes_first() {
        for host in ["https://192.0.2.1:6443", "https://[2001:db8::1]:6443"] {
            let known = Known {
                environment: Some(host.to_owned()),
                ..known()
            };
            assert_eq!(urls(&known)[0], host);
            assert_eq!(urls(&known).len(), 4);
        }
    }

    #[rstest]
    #[case::ipv4("https://10.96.0.1:443", Some("10.96.0.1"), true)]
    #[case::ipv6("https://[fd00:10:96::1]:443", Some("fd00:10:96::1"), true)]
    #[case::name("https://kubernetes.default.svc", None, true)]
    #[case::full_name("https://kubernetes.default.svc.cluster.local:443", None, true)]
    #[case::another("https://10.96.0.2:443", Some("10.96.0.1"), false)]
    #[case::unknown("https://10.96.0.1:443", None, false)]
    #[case::a_name("https://api.example:6443", Some("10.96.0.1"), false)]
    fn the_service_is_known(#[case] url: &str, #[case] ip: Option<&str>, #[case] expected: bool) {
        let ip = ip.map(|ip| ip.parse().expect("an address"));
        assert_eq!(is_the_service(url, ip), expected);
    }

    #[rstest]
    #[case(&[("KUBERNETES_PORT", "tcp://10.96.0.1:443")], Some("10.96.0.1"))]
    #[case(&[("KUBERNETES_PORT", "tcp://[fd00::1]:443")], Some("fd00::1"))]
    #[case(&[("KUBERNETES_PORT_443_TCP_ADDR", "fd00::1")], Some("fd00::1"))]
    #[case(&[("KUBERNETES_SERVICE_HOST", "10.96.0.1")], None)]
    fn the_kubelet_tells_the_address(
        #[case] variables: &[(&str, &str)],
        #[case] expected: Option<&str>,
    ) {
        let variable = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        assert_eq!(
            cluster_ip(&variable),
            expected.map(|ip| ip.parse().expect("an address"))
        );
    }

    #[rstest]
    #[case("192.0.2.1", "https://192.0.2.1:6443")]
    #[case("fd00::1", "https://[fd00::1]:6443")]
    #[case("api.example", "https://api.example:6443")]
    fn variables_make_a_url(#[case] host: &str, #[case] expected: &str) {
        let variable = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("6443".to_owned()),
            _ => None,
        };
        assert_eq!(environment(&variable).as_deref(), Some(expected));
    }
}

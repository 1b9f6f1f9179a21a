//! etcd, the API server, the controllers and the scheduler, in a network
//! namespace on the underlay.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    addresses,
    credentials::{API_PORT, Credentials},
    kubectl::Kubectl,
    place::{CONTROL_PLANE, Place},
    process,
    spec::{Family, Spec},
};
use crate::{cache, exec};

/// A cold start on a busy machine of two cores takes 15 s.
const READY_LIMIT: Duration = Duration::from_mins(3);

/// Starts all of it and waits until the API server is ready.
pub(crate) fn start(place: &Place, spec: &Spec, programs: &Path) -> Result<()> {
    let logs = place.file("log");
    cache::create(&logs)?;
    let credentials = Credentials::of(place.folder());
    let start = |name: &str, arguments: Vec<String>| {
        let mut command = place.at_control_plane(programs.join(name));
        command.args(arguments);
        process::start(&command, &logs.join(format!("{name}.log")))
    };
    let etcd_data = place.file("etcd");
    let mut running = [
        ("etcd", start("etcd", etcd(spec, &etcd_data))?),
        (
            "kube-apiserver",
            start("kube-apiserver", api_server(spec, &credentials))?,
        ),
    ];
    let kubectl = Kubectl::new(place, programs);
    let mut ended = Ok(());
    process::eventually("the API server", READY_LIMIT, || {
        for (name, child) in &mut running {
            ended = process::alive(name, child, &logs.join(format!("{name}.log")));
            if ended.is_err() {
                return Ok(());
            }
        }
        let answer = kubectl.output(&["get", "--raw", "/readyz"])?;
        ensure!(answer == "ok", "/readyz: {answer}");
        Ok(())
    })?;
    ended?;
    start("kube-controller-manager", controllers(spec, &credentials))?;
    start("kube-scheduler", scheduler(&credentials)).context("start the scheduler")?;
    Ok(())
}

/// Ends the API server, as a fall of it would.
pub(crate) fn stop_api_server(place: &Place) -> Result<()> {
    process::eventually("the end of the API server", READY_LIMIT, || {
        let processes = api_servers(place)?;
        for process in &processes {
            exec::output(Command::new("kill").args(["-KILL", process]))?;
        }
        ensure!(processes.is_empty(), "it is there");
        Ok(())
    })
}

/// Returns the processes of API servers; those that have ended are in no network
/// namespace any more.
fn api_servers(place: &Place) -> Result<Vec<String>> {
    let namespace = place.namespace(CONTROL_PLANE);
    let processes = exec::output(Command::new("ip").args(["netns", "pids", &namespace]))?;
    let name = |process: &str| fs::read_to_string(format!("/proc/{process}/comm"));
    let is_it = |process: &&str| name(process).is_ok_and(|name| name.trim() == "kube-apiserver");
    let found = processes.lines().filter(is_it);
    Ok(found.map(str::to_owned).collect())
}

/// Starts the API server of a cluster that has none.
pub(crate) fn start_api_server(place: &Place, spec: &Spec, kubectl: &Kubectl<'_>) -> Result<()> {
    let credentials = Credentials::of(place.folder());
    let mut command = place.at_control_plane(kubectl.sibling("kube-apiserver"));
    command.args(api_server(spec, &credentials));
    process::start(&command, &place.file("log/kube-apiserver.log"))?;
    process::eventually("the API server", READY_LIMIT, || {
        kubectl.output(&["get", "--raw", "/readyz"])?;
        Ok(())
    })
}

/// Loopback, by a family that the cluster has.
const fn loopback(spec: &Spec) -> IpAddr {
    match spec.families.first {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

fn etcd_url(spec: &Spec, port: u16) -> String {
    format!("http://{}", SocketAddr::new(loopback(spec), port))
}

fn etcd(spec: &Spec, data: &Path) -> Vec<String> {
    let (clients, peers) = (etcd_url(spec, 2379), etcd_url(spec, 2380));
    vec![
        format!("--data-dir={}", data.display()),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
    ]
}

fn api_server(spec: &Spec, credentials: &Credentials) -> Vec<String> {
    let families = spec.families;
    let own = addresses::control_plane(families.first);
    // The API server takes an unspecified address of IPv4 for a wish to be
    // asked over 127.0.0.1 by itself.
    let bind = match families.second {
        Some(_) => Ipv6Addr::UNSPECIFIED.into(),
        None => own,
    };
    let file = |name: &str| credentials.file(name).display().to_string();
    let issuer = "https://kubernetes.default.svc.cluster.local";
    vec![
        format!("--etcd-servers={}", etcd_url(spec, 2379)),
        format!("--bind-address={bind}"),
        format!("--advertise-address={own}"),
        format!("--secure-port={API_PORT}"),
        format!(
            "--service-cluster-ip-range={}",
            spec.services.join(addresses::services)
        ),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        format!(
            "--kubelet-client-certificate={}",
            file("kubelet-client.crt")
        ),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--service-account-issuer={issuer}"),
        format!(
            "--service-account-signing-key-file={}",
            file("accounts.key")
        ),
        format!("--service-account-key-file={}", file("accounts.pub")),
        "--shutdown-delay-duration=0s".to_owned(),
    ]
}

fn controllers(spec: &Spec, credentials: &Credentials) -> Vec<String> {
    let kubeconfig = credentials.kubeconfig("controllers");
    let file = |name: &str| credentials.file(name).display().to_string();
    let pods = spec
        .families
        .join(|family| addresses::all_pods(family, spec.cni));
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        "--use-service-account-credentials=true".to_owned(),
        format!(
            "--service-account-private-key-file={}",
            file("accounts.key")
        ),
        format!("--root-ca-file={}", file("ca.crt")),
        "--leader-elect=false".to_owned(),
        // Nodes come with the ranges that the underlay routes to them.
        "--allocate-node-cidrs=false".to_owned(),
        format!("--cluster-cidr={pods}"),
        format!(
            "--service-cluster-ip-range={}",
            spec.services.join(addresses::services)
        ),
        "--secure-port=0".to_owned(),
        // It makes the folder, by default among the machine's.
        format!("--flex-volume-plugin-dir={}", file("volume-plugins")),
        "--kube-api-qps=100".to_owned(),
        "--kube-api-burst=200".to_owned(),
    ]
}

fn scheduler(credentials: &Credentials) -> Vec<String> {
    let kubeconfig = credentials.kubeconfig("scheduler");
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::cluster::spec::{Cni, Proxy};

    #[rstest]
    #[case::both(
        "ipv4,ipv6",
        "--bind-address=::",
        "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112"
    )]
    #[case::other_first(
        "ipv6,ipv4",
        "--bind-address=::",
        "--service-cluster-ip-range=fd00:10:96::/112,10.96.0.0/16"
    )]
    #[case::one(
        "ipv4",
        "--bind-address=172.30.0.10",
        "--service-cluster-ip-range=10.96.0.0/16"
    )]
    #[case::the_other(
        "ipv6",
        "--bind-address=fd00:30::a",
        "--service-cluster-ip-range=fd00:10:96::/112"
    )]
    fn services_have_the_clusters_families(
        #[case] families: &str,
        #[case] bind: &str,
        #[case] ranges: &str,
    ) {
        let families = families.parse().unwrap();
        let spec = Spec::new(1, families, Cni::Ptp, Proxy::Tandem, &[]).unwrap();
        let credentials = Credentials::of(Path::new("/cluster"));
        let arguments = api_server(&spec, &credentials);
        for wanted in [bind, ranges] {
            assert!(
                arguments.iter().any(|other| other == wanted),
                "{arguments:?}"
            );
        }
        assert!(
            controllers(&spec, &credentials)
                .iter()
                .any(|other| other == ranges)
        );
    }
}

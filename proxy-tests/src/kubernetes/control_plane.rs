//! etcd, the API server and the controller manager on a host of the lab.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::{Credentials, Kubectl, Process, User};
use crate::{
    addressing::service_cidr,
    family::{Families, Family},
    host::Host,
    lab::Lab,
    manifest::node_object,
    poll::eventually,
};

/// The API server's port.
const API_PORT: u16 = 6443;
/// A cold start on a busy machine of two cores takes 5 to 10 s.
const READY_LIMIT: Duration = Duration::from_mins(1);

/// The families the API server gives Services addresses of, the default one
/// first. It may have fewer than the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceRanges {
    V4,
    V6,
    V4ThenV6,
    V6ThenV4,
}

impl ServiceRanges {
    /// The families of the lab, IPv4 first.
    pub fn of(families: Families) -> Self {
        match families {
            Families::Dual => Self::V4ThenV6,
            Families::V4Only => Self::V4,
            Families::V6Only => Self::V6,
        }
    }

    /// The families, the default one first.
    pub fn list(self) -> &'static [Family] {
        match self {
            Self::V4 => &[Family::V4],
            Self::V6 => &[Family::V6],
            Self::V4ThenV6 => &[Family::V4, Family::V6],
            Self::V6ThenV4 => &[Family::V6, Family::V4],
        }
    }
}

/// A control plane. Fields are dropped in this order.
#[derive(Debug)]
pub struct ControlPlane {
    controllers: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
    kubectl: Kubectl,
    credentials: Credentials,
    directory: TempDir,
    programs: PathBuf,
    ranges: ServiceRanges,
    host: Arc<Host>,
}

impl ControlPlane {
    /// Starts everything, waits until it is ready, and tells it of the lab's
    /// nodes.
    pub fn start(lab: &mut Lab, ranges: ServiceRanges) -> Result<Self> {
        let mut control_plane = Self::prepare(lab, ranges)?;
        control_plane.launch()?;
        control_plane.register_nodes(lab)?;
        Ok(control_plane)
    }

    /// A control plane of which nothing runs yet: its host and credentials.
    pub fn prepare(lab: &mut Lab, ranges: ServiceRanges) -> Result<Self> {
        let programs = programs()?;
        let host = Arc::new(lab.add_external("control-plane")?);
        let directory = directory(lab.id())?;
        let credentials = Credentials::create(directory.path(), &host.addresses().list())?;
        let server = SocketAddr::new(host.address(ranges.list()[0]), API_PORT);
        let kubeconfig = credentials.kubeconfig("admin", User::Admin, server)?;
        Ok(Self {
            controllers: None,
            api_server: None,
            etcd: None,
            kubectl: Kubectl::new(Arc::clone(&host), programs.join("kubectl"), kubeconfig),
            credentials,
            directory,
            programs,
            ranges,
            host,
        })
    }

    /// Starts all programs, and waits until the API server is ready.
    pub fn launch(&mut self) -> Result<()> {
        self.etcd = Some(self.program("etcd", &self.etcd_arguments())?);
        self.start_api_server()?;
        self.controllers =
            Some(self.program("kube-controller-manager", &self.controller_arguments())?);
        Ok(())
    }

    /// Starts the API server and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result<()> {
        self.api_server = Some(self.program("kube-apiserver", &self.api_server_arguments())?);
        // A program that has ended is worth no more waiting.
        eventually("API server is ready", READY_LIMIT, || {
            for process in [&mut self.etcd, &mut self.api_server] {
                if let Err(ended) = process.as_mut().context("not started")?.ensure_alive() {
                    return Ok(Err(ended));
                }
            }
            let answer = self.kubectl.run(&["get", "--raw", "/readyz"])?;
            ensure!(answer == "ok", "/readyz: {answer}");
            Ok(Ok(()))
        })?
    }

    /// Kills the API server, without warning anybody.
    pub fn kill_api_server(&mut self) {
        self.api_server = None;
    }

    /// `kubectl` as administrator.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Returns the API server's address and port.
    pub fn server(&self, family: Family) -> SocketAddr {
        self.host.at(family, API_PORT)
    }

    /// Returns the certificate of the authority that signed the API server's.
    pub fn authority(&self) -> PathBuf {
        self.credentials.authority()
    }

    /// A kubeconfig for an agent that reaches the API server over `family`.
    pub fn agent_kubeconfig(&self, family: Family) -> Result<PathBuf> {
        let server = self.server(family);
        let name = format!("agent-{}", family.api_name().to_lowercase());
        self.credentials.kubeconfig(&name, User::Proxy, server)
    }

    /// Makes the Node objects of the lab's nodes, each in a zone of its own:
    /// `zone-1`, `zone-2`.
    pub fn register_nodes(&self, lab: &Lab) -> Result<()> {
        let nodes: Vec<_> = lab
            .nodes
            .iter()
            .map(|node| {
                let mut object = node_object(node);
                object["metadata"]["labels"]["topology.kubernetes.io/zone"] =
                    format!("zone-{}", node.index()).into();
                object
            })
            .collect();
        self.kubectl.create(&nodes)?;
        self.kubectl.replace_status(&nodes)
    }

    fn program(&self, name: &str, arguments: &[String]) -> Result<Process> {
        let mut command = Command::new(self.programs.join(name));
        command.args(arguments).current_dir(self.directory.path());
        let log = self.directory.path().join(format!("{name}.log"));
        Process::start(&self.host, command, log)
    }

    /// Loopback, by a family the host has.
    fn loopback(&self) -> IpAddr {
        match self.host.addresses().v4 {
            Some(_) => Ipv4Addr::LOCALHOST.into(),
            None => Ipv6Addr::LOCALHOST.into(),
        }
    }

    fn etcd_arguments(&self) -> Vec<String> {
        let clients = format!("http://{}", SocketAddr::new(self.loopback(), 2379));
        let peers = format!("http://{}", SocketAddr::new(self.loopback(), 2380));
        vec![
            format!(
                "--data-dir={}",
                self.directory.path().join("etcd").display()
            ),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=default={peers}"),
        ]
    }

    fn api_server_arguments(&self) -> Vec<String> {
        let ranges: Vec<_> = self
            .ranges
            .list()
            .iter()
            .copied()
            .map(service_cidr)
            .collect();
        let credentials = &self.credentials;
        // The API server takes the first for a wish to be asked over
        // 127.0.0.1 by itself.
        let addresses = self.host.addresses();
        let bind: IpAddr = match (addresses.v4, addresses.v6) {
            (Some(_), Some(_)) => Ipv6Addr::UNSPECIFIED.into(),
            _ => self.host.address(self.ranges.list()[0]),
        };
        vec![
            format!(
                "--etcd-servers=http://{}",
                SocketAddr::new(self.loopback(), 2379)
            ),
            format!("--bind-address={bind}"),
            format!(
                "--advertise-address={}",
                self.host.address(self.ranges.list()[0])
            ),
            format!("--secure-port={API_PORT}"),
            format!("--service-cluster-ip-range={}", ranges.join(",")),
            format!("--tls-cert-file={}", credentials.certificate().display()),
            format!("--tls-private-key-file={}", credentials.key().display()),
            format!("--token-auth-file={}", credentials.tokens().display()),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!(
                "--service-account-signing-key-file={}",
                credentials.accounts_key().display()
            ),
            format!(
                "--service-account-key-file={}",
                credentials.accounts_public().display()
            ),
            // Pods of the tests have no service account to speak of.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--shutdown-delay-duration=0s".to_owned(),
        ]
    }

    fn controller_arguments(&self) -> Vec<String> {
        let kubeconfig = self.directory.path().join("admin.kubeconfig");
        vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            "--controllers=endpointslice-controller,daemonset-controller".to_owned(),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
            "--kube-api-qps=1000".to_owned(),
            "--kube-api-burst=1000".to_owned(),
        ]
    }
}

/// The folder with the programs.
fn programs() -> Result<PathBuf> {
    let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS") else {
        bail!(
            "KUBEBUILDER_ASSETS does not name a folder with kube-apiserver; `cargo xtask test --kubernetes` sets it"
        );
    };
    Ok(folder.into())
}

/// A directory for data and logs, in memory where that is possible.
fn directory(id: &str) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    let prefix = format!("{id}-");
    builder.prefix(&prefix);
    let memory = Path::new("/dev/shm");
    if fs::metadata(memory).is_ok_and(|place| place.is_dir())
        && let Ok(directory) = builder.tempdir_in(memory)
    {
        return Ok(directory);
    }
    Ok(builder.tempdir()?)
}

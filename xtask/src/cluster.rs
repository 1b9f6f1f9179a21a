//! `cluster`: a Kubernetes cluster on this machine, of real nodes: kubelet,
//! containerd and runc of each in namespaces of their own, joined by a bridge.

mod addresses;
mod check;
mod config;
mod control_plane;
pub(crate) mod credentials;
mod dns;
pub(crate) mod down;
pub(crate) mod images;
pub(crate) mod kubectl;
mod load_balancer;
pub(crate) mod node;
pub(crate) mod place;
mod process;
mod programs;
mod proxy;
pub(crate) mod spec;
mod status;
mod test;
mod underlay;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Subcommand, ValueEnum};

use self::{
    credentials::Credentials,
    kubectl::Kubectl,
    node::Nodes,
    place::Place,
    spec::{Cni, Families, Proxy, Share, Spec},
};
use crate::{
    build::{self, Profile},
    cache::{self, Cache},
    exec,
    setup::{self, kubernetes},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which cluster, where there are several
    #[arg(long, default_value = "dev", global = true)]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a cluster and wait until it serves
    Up(Up),
    /// Remove it, with all that it left
    Down,
    /// Run kubectl as its administrator
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Say what there is
    Status,
    /// Ask a Service by every way that there is, in each family
    Check,
    /// Serve Services of type LoadBalancer, in the router of a cluster
    #[command(hide = true)]
    Balance,
    /// Try what users ask for and what nodes go through, in clusters of their own
    Test(test::Args),
    /// Run a command in a node
    Enter {
        /// Number of the node
        node: u8,
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            default_value = "bash"
        )]
        command: Vec<OsString>,
    },
}

#[derive(clap::Args)]
pub(crate) struct Up {
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// ipv4, ipv6, or both, the default one of Services first
    #[arg(long, default_value = "ipv4,ipv6")]
    families: Families,
    #[arg(long, value_enum, default_value = "ptp")]
    cni: Cni,
    #[arg(long, value_enum, default_value = "tandem")]
    proxy: Proxy,
    /// The last N nodes have another proxy, as nftables=1
    #[arg(long, value_name = "PROXY=N")]
    nodes_with: Vec<Share>,
    /// How the agent is built: an optimised one takes minutes more
    #[arg(long, value_enum, default_value = "dev")]
    profile: AgentProfile,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum AgentProfile {
    Dev,
    Release,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { name, verb } = args;
    let cache = Cache::locate()?;
    let place = Place::new(&cache, name)?;
    match verb {
        Verb::Up(args) => up(&cache, &place, &args.spec()?, args.profile, &[]),
        Verb::Down => exec::timed("removal of the cluster", || down::run(&place)),
        Verb::Kubectl { arguments } => {
            place.running()?;
            let mut kubectl = kubectl(&cache, &place).command();
            // It has said itself what went wrong.
            let status = kubectl.args(arguments).status().context("start kubectl")?;
            std::process::exit(status.code().unwrap_or(1))
        }
        Verb::Status => status::run(&place, &kubectl(&cache, &place)),
        Verb::Check => check::run(&place, &kubectl(&cache, &place)),
        Verb::Balance => load_balancer::run(&place, &kubectl(&cache, &place)),
        Verb::Test(args) => test::run(&cache, &place, args),
        Verb::Enter { node, command } => enter(&cache, &place, *node, command),
    }
}

pub(crate) fn kubectl<'a>(cache: &Cache, place: &'a Place) -> Kubectl<'a> {
    Kubectl::new(place, &kubernetes::folder(cache))
}

fn enter(cache: &Cache, place: &Place, node: u8, command: &[OsString]) -> Result<()> {
    place.running()?;
    let spec = Spec::read(&place.spec())?;
    let programs = node_programs(cache, &spec)?;
    let nodes = Nodes {
        place,
        spec: &spec,
        programs: &programs,
    };
    let (program, arguments) = command.split_first().context("no command")?;
    exec::foreground(nodes.enter(node, Path::new(program))?.args(arguments))
}

impl Up {
    fn spec(&self) -> Result<Spec> {
        let &Self {
            nodes,
            families,
            cni,
            proxy,
            ref nodes_with,
            profile: _,
        } = self;
        Spec::new(nodes, families, cni, proxy, nodes_with)
    }
}

/// Makes a cluster whose nodes have the images of archives `more`, too. What
/// fails is left as it is, to be looked at.
pub(crate) fn up(
    cache: &Cache,
    place: &Place,
    spec: &Spec,
    profile: AgentProfile,
    more: &[PathBuf],
) -> Result<()> {
    ensure!(
        place.namespaces().is_empty() && !place.folder().exists(),
        "there is such a cluster, or a part of one: cargo xtask cluster down removes it"
    );
    let kubernetes = kubernetes::start(cache, kubernetes::CLUSTER);
    setup::nodes(cache)?;
    setup::toolchain(cache)?;
    let agent = match profile {
        AgentProfile::Dev => build::agent(cache, Profile::Dev)?,
        AgentProfile::Release => build::static_agent(cache)?,
    };
    let kubernetes = kubernetes.finish()?;
    let programs = node_programs(cache, spec)?;
    let coredns = programs::COREDNS.ensure(cache)?;
    let images = images::ensure(cache, &kubernetes, &coredns)?;

    cache::create(place.folder())?;
    spec.write(&place.spec())?;
    exec::timed("the agent's image", || {
        provide_images(place, &images, more, &agent)
    })?;
    exec::timed("network and credentials", || {
        underlay::create(place, spec)?;
        Credentials::of(place.folder()).create(cache, spec)
    })?;
    exec::timed("control plane", || {
        control_plane::start(place, spec, &kubernetes)
    })?;
    let kubectl = Kubectl::new(place, &kubernetes);
    let nodes = Nodes {
        place,
        spec,
        programs: &programs,
    };
    exec::timed("nodes", || nodes.start(&kubectl))?;
    load_balancer::start(place)?;
    exec::timed("proxies", || proxy::start(place, spec, &nodes, &kubectl))?;
    if spec.nodes.iter().any(|proxy| *proxy != Proxy::None) {
        exec::timed("DNS", || {
            kubectl.apply("dns", &dns::objects(spec))?;
            kubectl.rolled_out("deployment/coredns", Duration::from_mins(2))
        })?;
    }
    eprintln!("xtask: {}", status::summary(spec));
    eprintln!("xtask: try cargo xtask cluster kubectl get pods --all-namespaces");
    Ok(())
}

/// A cluster in one line.
pub(crate) fn summary(spec: &Spec) -> String {
    status::summary(spec)
}

/// The name of a proxy on the command line.
pub(crate) fn proxy_name(proxy: Proxy) -> String {
    status::name(&proxy)
}

/// The programs that nodes run besides Kubernetes, as text.
pub(crate) fn versions() -> String {
    format!(
        "containerd {}, CoreDNS {}",
        programs::CONTAINERD.version,
        programs::COREDNS.version
    )
}

/// The folders of what nodes run, built if need be.
pub(crate) fn node_programs(cache: &Cache, spec: &Spec) -> Result<Vec<PathBuf>> {
    let mut folders = vec![
        programs::CONTAINERD.ensure(cache)?,
        kubernetes::folder(cache),
    ];
    if spec.cni.is_flannel() {
        folders.push(programs::FLANNEL.ensure(cache)?);
    }
    Ok(folders)
}

/// Puts the archives of all images where nodes look for them.
fn provide_images(place: &Place, images: &Path, more: &[PathBuf], agent: &Path) -> Result<()> {
    let folder = place.file("images");
    cache::create(&folder)?;
    let entries = std::fs::read_dir(images).context("list the images")?;
    let archives = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .context("list the images")?;
    for archive in archives.iter().chain(more) {
        let name = archive.file_name().context("an image has no name")?;
        cache::link(archive, &folder.join(name))?;
    }
    images::agent(agent, proxy::IMAGE, &folder)
}

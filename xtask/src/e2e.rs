//! `e2e`: Kubernetes' own tests of everything that has to do with Services,
//! against Tandem on real nodes; those that do not pass also against
//! kube-proxy, and a document that says which pass and why others do not.

mod document;
mod reasons;
mod report;
mod suite;

use std::{fs, time::Duration};

use anyhow::{Result, ensure};

use self::{
    document::Circumstances,
    report::{Outcome, State},
    suite::Suite,
};
use crate::{
    cache::Cache,
    cluster::{
        self, AgentProfile, down,
        place::Place,
        spec::{Cni, Families, Proxy, Spec},
    },
    exec,
    setup::{self, kubernetes},
    workspace,
};

/// The tests that have to do with Services.
const FOCUS: &str = r"\[sig-network\] (Services|Networking|.*IPv6DualStack|Conntrack|EndpointSlice|EndpointSliceMirroring|Traffic Distribution|Topology Hints|HostPort|NoSNAT|Service CIDRs|Service endpoints latency|Proxy|KubeProxy|LoadBalancers|DNS should (provide DNS for (services|pods|the cluster)|resolve))";

/// The tests that cannot run here: they want another kernel, another network or a cloud.
const SKIP: &str = r"\[Disruptive\]|\[sig-windows\]|\[Feature:(SCTPConnectivity|Networking-IPv4|Networking-IPv6|Networking-DNS|KubeProxyNFAcct|NetworkPolicy|.*Internet)";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose names match
    #[arg(long, default_value = FOCUS, hide_default_value = true)]
    focus: String,
    /// No tests whose names match
    #[arg(long, default_value = SKIP, hide_default_value = true)]
    skip: String,
    /// What serves Services
    #[arg(long, value_enum, default_value = "tandem")]
    proxy: Proxy,
    /// What those tests run against once more that do not pass
    #[arg(long, value_enum, default_value = "nftables")]
    control: Proxy,
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    #[arg(long, default_value = "ipv4,ipv6")]
    families: Families,
    #[arg(long, value_enum, default_value = "ptp")]
    cni: Cni,
    /// How many tests run at a time
    #[arg(long, default_value_t = 5)]
    procs: u8,
    /// Give up after so many minutes
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    #[arg(long, value_enum, default_value = "dev")]
    profile: AgentProfile,
    /// Name of the cluster, and of the folder for results [default: that of the proxy]
    #[arg(long)]
    name: Option<String>,
    /// Leave the cluster with the tested proxy up
    #[arg(long)]
    keep: bool,
    /// Write what came of it to docs/conformance.md, beside other clusters' results
    #[arg(long)]
    document: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let cache = Cache::locate()?;
    setup::nodes(&cache)?;
    kubernetes::start(&cache, kubernetes::END_TO_END).finish()?;
    // As it is now: the run is long.
    let circumstances = Circumstances::now(args.summary()?, &args.skip(), args.control)?;
    let tested = one(&cache, args, args.proxy, &args.focus, args.keep)?;
    let failed: Vec<_> = tested
        .iter()
        .filter(|outcome| outcome.state == State::Failed)
        .collect();
    let control = if failed.is_empty() || args.control == Proxy::None {
        Vec::new()
    } else {
        one(&cache, args, args.control, &report::focus(&failed), false)?
    };
    let section = document::section(&circumstances, &tested, &control);
    if args.document {
        let path = workspace::root().join("docs/conformance.md");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, document::with(&before, &section))?;
        eprintln!("xtask: wrote {}", path.display());
    } else {
        println!("{section}");
    }
    ensure!(
        failed
            .iter()
            .all(|outcome| reasons::of(&outcome.name).is_some()),
        "tests failed that have no reason to"
    );
    Ok(())
}

impl Args {
    fn spec(&self, proxy: Proxy) -> Result<Spec> {
        Spec::new(self.nodes, self.families, self.cni, proxy, &[])
    }

    /// The tests that are left out: in a cluster of one family, those of both, too.
    fn skip(&self) -> String {
        let skip = &self.skip;
        match self.families.second {
            Some(_) => skip.clone(),
            None => format!(r"{skip}|\[Feature:IPv6DualStack\]"),
        }
    }

    /// The cluster that was tested, in one line.
    fn summary(&self) -> Result<String> {
        Ok(cluster::summary(&self.spec(self.proxy)?))
    }
}

/// Runs tests against one proxy, in a cluster of its own.
fn one(cache: &Cache, args: &Args, proxy: Proxy, focus: &str, keep: bool) -> Result<Vec<Outcome>> {
    let spec = args.spec(proxy)?;
    let label = cluster::proxy_name(proxy);
    let name = match &args.name {
        Some(name) if proxy == args.proxy => name.clone(),
        Some(name) => format!("{name}{label}"),
        None => label.clone(),
    };
    let place = Place::new(cache, &name)?;
    let more = cluster::images::end_to_end(cache, &kubernetes::folder(cache))?;
    cluster::up(cache, &place, &spec, args.profile, &more)?;
    let suite = Suite {
        cache,
        place: &place,
        spec: &spec,
        results: workspace::target().join("e2e").join(&name),
    };
    suite.name_images()?;
    let limit = Duration::from_mins(args.minutes);
    let outcomes = suite.run(focus, &args.skip(), args.procs, limit)?;
    for outcome in &outcomes {
        println!("{outcome}");
    }
    if !keep {
        exec::timed("removal of the cluster", || down::run(&place))?;
    }
    Ok(outcomes)
}

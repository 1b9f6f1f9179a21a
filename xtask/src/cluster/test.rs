//! `test`: what users ask for and what nodes go through, on real nodes. Each kind
//! of cluster is made once for all tests that want it.

mod dual_stack;
mod life;
mod load;
mod network;
mod node_life;
mod objects;
mod outside;
mod policy;
mod scene;
mod traffic;

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use self::scene::Scene;
use super::{
    AgentProfile, down,
    place::Place,
    spec::{Cni, Proxy, Spec},
};
use crate::{cache::Cache, exec};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose names have one of these parts
    filters: Vec<String>,
    /// Only say which tests there are
    #[arg(long)]
    list: bool,
    /// What serves Services: with none, hardly any test passes
    #[arg(long, value_enum, default_value = "tandem")]
    proxy: Proxy,
    #[arg(long, value_enum, default_value = "dev")]
    profile: AgentProfile,
}

/// The clusters that tests want.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    DualStack,
    /// Nodes and pods have both families, Services IPv4 only.
    Ipv4Services,
    FlannelVxlan,
    FlannelHostGw,
    Macvlan,
}

struct Test {
    name: &'static str,
    kind: Kind,
    run: fn(&Scene<'_>) -> Result<()>,
}

macro_rules! tests {
    ($($kind:ident { $($module:ident::$name:ident,)+ })+) => {
        &[$($(Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            kind: Kind::$kind,
            run: $module::$name,
        },)+)+]
    };
}

const TESTS: &[Test] = tests! {
    DualStack {
        dual_stack::every_policy_and_order_serves_its_families,
        dual_stack::pods_of_one_family_serve_and_ask_in_it,
        traffic::nginx_and_cluster_dns_answer_clients_of_either_family,
        traffic::masquerading_by_the_network_plugin_stays,
        traffic::host_ports_of_portmap_stay,
        outside::clients_that_route_the_service_range_to_a_node_are_served,
        outside::vpn_clients_reach_pods_and_services,
        outside::load_balancers_follow_local_endpoints,
        policy::network_policies_see_real_addresses,
        life::a_rollout_loses_nothing,
        life::a_drained_node_loses_nothing,
        life::many_pods_come_and_go,
        life::restarts_of_kubelet_and_containerd_lose_nothing,
        node_life::a_node_reboots,
        node_life::a_node_reboots_without_api_server,
    }
    Ipv4Services {
        dual_stack::an_ipv4_cluster_turns_dual_stack,
    }
    FlannelVxlan {
        network::nodes_joined_by_vxlan_serve,
    }
    FlannelHostGw {
        network::nodes_joined_by_routes_of_flannel_serve,
    }
    Macvlan {
        network::macvlan_pods_reach_dns_and_cluster_ips,
    }
};

impl Kind {
    const ALL: [Self; 5] = [
        Self::DualStack,
        Self::Ipv4Services,
        Self::FlannelVxlan,
        Self::FlannelHostGw,
        Self::Macvlan,
    ];

    fn spec(self, proxy: Proxy) -> Result<Spec> {
        let cni = match self {
            Self::DualStack | Self::Ipv4Services => Cni::Ptp,
            Self::FlannelVxlan => Cni::FlannelVxlan,
            Self::FlannelHostGw => Cni::FlannelHostGw,
            Self::Macvlan => Cni::Macvlan,
        };
        let mut spec = Spec::new(2, "ipv4,ipv6".parse()?, cni, proxy, &[])?;
        if self == Self::Ipv4Services {
            spec.services = "ipv4".parse()?;
        }
        Ok(spec)
    }
}

/// Runs tests in the cluster of this name, if it is there and of their kind, and
/// otherwise in new ones.
pub(crate) fn run(cache: &Cache, place: &Place, args: &Args) -> Result<()> {
    let Args {
        filters,
        list,
        proxy,
        profile,
    } = args;
    let wanted = |test: &&Test| {
        filters.is_empty() || filters.iter().any(|part| test.name.contains(part.as_str()))
    };
    let tests: Vec<_> = TESTS.iter().filter(wanted).collect();
    ensure!(!tests.is_empty(), "there is no such test");
    if *list {
        for test in tests {
            println!("{}", test.name);
        }
        return Ok(());
    }
    let mut failed = Vec::new();
    for kind in Kind::ALL {
        let tests: Vec<_> = tests.iter().filter(|test| test.kind == kind).collect();
        if tests.is_empty() {
            continue;
        }
        let spec = kind.spec(*proxy)?;
        let there = place.running().is_ok();
        if there {
            ensure!(
                Spec::read(&place.spec())? == spec,
                "there is a cluster {} of another kind: give these tests another --name",
                place.name()
            );
        } else {
            super::up(cache, place, &spec, *profile, &[])?;
        }
        for test in tests {
            if !one(cache, place, &spec, test)? {
                failed.push(test.name);
            }
        }
        if !there {
            exec::timed("removal of the cluster", || down::run(place))?;
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Runs a test and returns whether it passed.
fn one(cache: &Cache, place: &Place, spec: &Spec, test: &Test) -> Result<bool> {
    eprintln!("xtask: {} ...", test.name);
    let start = Instant::now();
    let programs = super::node_programs(cache, spec)?;
    let (_, function) = test.name.split_once("::").context("a test has no name")?;
    let scene = Scene::new(cache, place, spec, &programs, function);
    let result = scene.create().and_then(|()| (test.run)(&scene));
    let removed = scene.remove();
    let result = result.and(removed);
    let seconds = exec::seconds(start.elapsed());
    match &result {
        Ok(()) => println!("passed {} ({seconds})", test.name),
        Err(error) => println!("FAILED {} ({seconds}): {error:#}", test.name),
    }
    Ok(result.is_ok())
}

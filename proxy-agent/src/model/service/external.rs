//! The parts of a Service that concern clients outside the cluster.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{
    ServiceProblem,
    fields::{Ingress, Status},
    frontend_address,
};
use crate::model::{
    Problems,
    address::parse_cidr,
    api::{Field, List, Malformed},
    port_number,
};

const LEFT_OUT: &str = "it is left out";

/// Returns whether externalTrafficPolicy: Local counts on a Service: if something of it
/// is meant for clients outside (S10).
pub(super) fn is_external(kind: Option<&str>, has_external_ips: bool) -> bool {
    match kind {
        Some("LoadBalancer" | "NodePort") => true,
        None | Some("ClusterIP") => has_external_ips,
        Some(_) => false,
    }
}

/// externalTrafficPolicy: Local. A malformed policy fails: under the other one
/// traffic would go to other endpoints, and clients would lose their addresses.
pub(super) fn policy_is_local(
    policy: Field<Box<str>>,
    problems: &mut Problems,
) -> Result<bool, Malformed> {
    let policy = policy.at("spec.externalTrafficPolicy")?;
    Ok(
        super::policy_is_local(policy.as_deref()).unwrap_or_else(|policy| {
            problems.add(ServiceProblem::ExternalTrafficPolicy(policy));
            false
        }),
    )
}

/// spec.externalIPs. Those that are malformed are not served, which lets nobody
/// in.
pub(super) fn listed_external_ips(
    ips: Field<List<Box<str>>>,
    problems: &mut Problems,
) -> List<Box<str>> {
    let listed = problems.note(
        ips.or_default("spec.externalIPs"),
        "no external IP is served",
    );
    listed.unwrap_or_default()
}

/// The usable external IPs (S7).
pub(super) fn external_ips(listed: List<Box<str>>, problems: &mut Problems) -> Vec<IpAddr> {
    let ips = listed.into_iter().enumerate().filter_map(|(at, raw)| {
        let raw = raw.or_default(format_args!("spec.externalIPs[{at}]"));
        let raw = problems.note(raw, LEFT_OUT)?;
        frontend_address(&raw, None)
            .map_err(|problem| problems.add(ServiceProblem::ExternalIp(problem)))
            .ok()
    });
    ascending(ips)
}

/// The load balancer's addresses whose packets come here as they are. With
/// other modes the balancer has a say first, and a name is no address (S8).
/// Those that are malformed are not served, which lets nobody in.
pub(super) fn load_balancer_ips(status: Field<Status>, problems: &mut Problems) -> Vec<IpAddr> {
    let listed = problems.note(ingress(status), "no load balancer's address is served");
    let listed = listed.unwrap_or_default().into_iter().enumerate();
    let ips = listed.filter_map(|(at, ingress)| {
        let (raw, mode) = problems
            .note(ip_and_mode(ingress, at), LEFT_OUT)
            .flatten()?;
        match mode.as_deref() {
            None | Some("" | "VIP") => {}
            Some("Proxy") => return None,
            Some(mode) => {
                let (ip, mode) = (raw.into(), mode.to_owned());
                problems.add(ServiceProblem::IngressMode { ip, mode });
                return None;
            }
        }
        frontend_address(&raw, None)
            .map_err(|problem| problems.add(ServiceProblem::IngressIp(problem)))
            .ok()
    });
    ascending(ips)
}

fn ingress(status: Field<Status>) -> Result<List<Ingress>, Malformed> {
    let status = status.or_default("status")?;
    let balancer = status.load_balancer.or_default("status.loadBalancer")?;
    balancer.ingress.or_default("status.loadBalancer.ingress")
}

type IpAndMode = (Box<str>, Option<Box<str>>);

/// The address of an ingress, if it has one, and its mode.
fn ip_and_mode(ingress: Field<Ingress>, at: usize) -> Result<Option<IpAndMode>, Malformed> {
    let path = format_args!("status.loadBalancer.ingress[{at}]");
    let ingress = ingress.or_default(path)?;
    let ip = ingress.ip.at(format_args!("{path}.ip"))?;
    let Some(ip) = ip.filter(|ip| !ip.is_empty()) else {
        return Ok(None);
    };
    let mode = ingress.ip_mode.at(format_args!("{path}.ipMode"))?;
    Ok(Some((ip, mode)))
}

/// The clients that may use the load balancer's addresses (S9).
#[derive(Debug, Default)]
pub(super) struct SourceRanges {
    /// Each once, in ascending order.
    pub(super) usable: Vec<IpNet>,
    /// True if an entry is not a range. It was meant to keep clients out, of whichever
    /// family.
    pub(super) some_unusable: bool,
}

pub(super) fn source_ranges(
    listed: Field<List<Box<str>>>,
    problems: &mut Problems,
) -> SourceRanges {
    const NOBODY: &str = "families without another range admit nobody to the load balancer";
    let path = "spec.loadBalancerSourceRanges";
    let mut some_unusable = matches!(listed, Field::Wrong(_));
    let listed = problems.note(listed.or_default(path), NOBODY);
    let listed = listed.unwrap_or_default();
    let ranges = listed.into_iter().enumerate().filter_map(|(at, raw)| {
        let raw = raw.or_default(format_args!("{path}[{at}]"));
        let raw = problems.note(raw, NOBODY);
        let range = raw.and_then(|raw| {
            let range = parse_cidr(raw.trim());
            if range.is_none() {
                problems.add(ServiceProblem::SourceRange(raw.into()));
            }
            range
        });
        some_unusable |= range.is_none();
        range
    });
    let usable = ascending(ranges);
    SourceRanges {
        usable,
        some_unusable,
    }
}

/// The health check port of a Service whose external traffic policy is Local:
/// load balancers only have one (S12). A malformed one is none.
pub(super) fn health_check_port(
    kind: Option<&str>,
    port: Field<i64>,
    problems: &mut Problems,
) -> Option<u16> {
    if kind != Some("LoadBalancer") {
        return None;
    }
    let raw = port.or_default("spec.healthCheckNodePort");
    let raw = problems.note(raw, "no health check is answered")?;
    let port = port_number(raw);
    if port.is_none() {
        problems.add(ServiceProblem::HealthCheckPort(raw));
    }
    port
}

fn ascending<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.collect::<BTreeSet<_>>().into_iter().collect()
}

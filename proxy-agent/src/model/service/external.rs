//! What of a Service concerns clients outside the cluster.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use super::{ServiceProblem, dialled_address};
use crate::model::{address::parse_cidr, port_number};

/// externalTrafficPolicy: Local, on a Service of which something is meant for
/// clients outside (S10).
pub(super) fn policy_is_local(spec: &api::ServiceSpec, problems: &mut Vec<ServiceProblem>) -> bool {
    let policy = super::policy_is_local(spec.external_traffic_policy.as_deref());
    let is_local = policy.unwrap_or_else(|policy| {
        problems.push(ServiceProblem::ExternalTrafficPolicy(policy));
        false
    });
    let is_external = match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => true,
        None | Some("ClusterIP") => spec
            .external_ips
            .as_ref()
            .is_some_and(|ips| !ips.is_empty()),
        Some(_) => false,
    };
    is_local && is_external
}

/// The usable external IPs (S7).
pub(super) fn external_ips(
    spec: &api::ServiceSpec,
    problems: &mut Vec<ServiceProblem>,
) -> Vec<IpAddr> {
    let listed = spec.external_ips.iter().flatten();
    let ips = listed.filter_map(|raw| {
        dialled_address(raw, None)
            .map_err(|problem| problems.push(ServiceProblem::ExternalIp(problem)))
            .ok()
    });
    ascending(ips)
}

/// The load balancer's addresses whose packets come here as they are. With
/// other modes the balancer has a say first, and a name is no address (S8).
pub(super) fn load_balancer_ips(
    status: api::ServiceStatus,
    problems: &mut Vec<ServiceProblem>,
) -> Vec<IpAddr> {
    let ingress = status.load_balancer.and_then(|balancer| balancer.ingress);
    let ips = ingress.into_iter().flatten().filter_map(|ingress| {
        let raw = ingress.ip.filter(|ip| !ip.is_empty())?;
        match ingress.ip_mode.as_deref() {
            None | Some("" | "VIP") => {}
            Some("Proxy") => return None,
            Some(mode) => {
                let mode = mode.to_owned();
                problems.push(ServiceProblem::IngressMode { ip: raw, mode });
                return None;
            }
        }
        dialled_address(&raw, None)
            .map_err(|problem| problems.push(ServiceProblem::IngressIp(problem)))
            .ok()
    });
    ascending(ips)
}

/// Who may use the load balancer's addresses (S9).
pub(super) fn source_ranges(
    spec: &api::ServiceSpec,
    problems: &mut Vec<ServiceProblem>,
) -> Vec<IpNet> {
    let listed = spec.load_balancer_source_ranges.iter().flatten();
    let ranges = listed.filter_map(|raw| {
        let range = parse_cidr(raw.trim());
        if range.is_none() {
            problems.push(ServiceProblem::SourceRange(raw.clone()));
        }
        range
    });
    ascending(ranges)
}

/// The health check port of a Service whose external traffic policy is Local:
/// load balancers only have one (S12).
pub(super) fn health_check_port(
    spec: &api::ServiceSpec,
    problems: &mut Vec<ServiceProblem>,
) -> Option<u16> {
    if spec.type_.as_deref() != Some("LoadBalancer") {
        return None;
    }
    let raw = spec.health_check_node_port.unwrap_or_default();
    let port = port_number(raw);
    if port.is_none() {
        problems.push(ServiceProblem::HealthCheckPort(raw));
    }
    port
}

fn ascending<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.collect::<BTreeSet<_>>().into_iter().collect()
}

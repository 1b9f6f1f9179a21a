//! The addresses of a Service in one family, and which clients may use them.

use std::net::IpAddr;

use proxy_common::family::Family;

use super::{DesiredFrontend, FrontendKind, NodeContext};
use crate::model::{Cidr, Service, ServicePort};

/// A Service's addresses of one family.
pub(super) struct Addresses<F: Family> {
    cluster_ip: F::Ip,
    external_ips: Vec<F::Ip>,
    load_balancer_ips: Vec<F::Ip>,
    /// True if only `source_ranges` may use the load balancer's addresses (S9).
    restricted: bool,
    pub(super) source_ranges: Vec<Cidr<F>>,
    /// The load balancer's addresses may use themselves (S59).
    allow_itself: bool,
}

impl<F: Family> Addresses<F> {
    /// Returns `None` if the Service has no cluster IP of the family: then it has no
    /// other address of it either (S3).
    pub(super) fn of(service: &Service, node: &NodeContext) -> Option<Self> {
        let ours = |ips: &[IpAddr]| ips.iter().copied().filter_map(F::from_ip).collect();
        let load_balancer_ips: Vec<_> = ours(&service.load_balancer_ips);
        let admitted = source_ranges(service).filter(|_| !load_balancer_ips.is_empty());
        let restricted = admitted.is_some();
        let source_ranges = admitted.unwrap_or_default();
        let node_ip = node.ips.get::<F>();
        Some(Self {
            cluster_ip: service.cluster_ips.get::<F>()?,
            external_ips: if node.external_ips {
                ours(&service.external_ips)
            } else {
                Vec::new()
            },
            load_balancer_ips,
            allow_itself: source_ranges
                .iter()
                .any(|range| node_ip.is_some_and(|ip| range.contains(ip))),
            restricted,
            source_ranges,
        })
    }

    /// The frontends of a port. One address listed twice is the first of: the
    /// cluster IP, a load balancer's address, an external IP.
    pub(super) fn frontends(
        &self,
        service: &Service,
        port: &ServicePort,
    ) -> Vec<DesiredFrontend<F>> {
        let cluster_ip = DesiredFrontend {
            local_set: service.internal_local,
            ..DesiredFrontend::new(FrontendKind::ClusterIp, self.cluster_ip, port.port)
        };
        let node_port = port.node_port.map(DesiredFrontend::node_port);
        let load_balancer = self.load_balancer_ips.iter().map(|&ip| DesiredFrontend {
            restricted: self.restricted,
            allow_itself: self.allow_itself,
            ..DesiredFrontend::new(FrontendKind::LoadBalancer, ip, port.port)
        });
        let external = self
            .external_ips
            .iter()
            .filter(|ip| !self.load_balancer_ips.contains(ip))
            .map(|&ip| DesiredFrontend::new(FrontendKind::ExternalIp, ip, port.port));
        let others = node_port
            .into_iter()
            .chain(load_balancer.chain(external).filter(|other| {
                // The cluster IP again.
                other.address != cluster_ip.address
            }))
            .map(|other| DesiredFrontend {
                local_set: service.external_local,
                ..other
            });
        std::iter::once(cluster_ip).chain(others).collect()
    }
}

/// The clients that may use the load balancer's addresses; `None` if everyone may: one
/// range that contains everyone, or none of the family, restricts nobody (S9). If a
/// range cannot be read, it may have been one of the family.
fn source_ranges<F: Family>(service: &Service) -> Option<Vec<Cidr<F>>> {
    let ranges = service.source_ranges.iter().copied();
    let ranges: Vec<Cidr<F>> = ranges.filter_map(Cidr::of).collect();
    let everyone = if ranges.is_empty() {
        !service.unusable_source_ranges
    } else {
        ranges.iter().any(|range| range.length() == 0)
    };
    (!everyone).then_some(ranges)
}

//! The agent's metrics, under kube-proxy's names where the meaning is the
//! same, and the server that shows them.
//!
//! [`Metrics`] is a handle: clones count into the same place. Numbers that
//! others keep, such as the counters in the kernel, join the registry as
//! collectors.

pub mod datapath;
pub mod pages;
pub mod process;
pub mod requests;
pub mod serve;
pub mod text;

use std::time::{Duration, SystemTime};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family as Labelled,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use proxy_common::family::Family;

use crate::model::Kind;

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Everything the agent counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    sync: SyncDurations,
    sync_full: SyncDurations,
    sync_partial: SyncDurations,
    sync_queued: Labelled<IpFamily, Seconds>,
    synced: Labelled<IpFamily, Seconds>,
    network_programming: ProgrammingDurations,
    service_changes: Counter,
    endpoint_changes: Counter,
    services_pending: Gauge,
    endpoints_pending: Gauge,
    without_local: Labelled<PolicyAndFamily, Gauge>,
    sync_failures: Labelled<IpFamily, Counter>,
    writes: Labelled<IpFamily, Counter>,
    repairs: Labelled<IpFamily, Counter>,
    object_problems: Labelled<KindAndReason, Counter>,
    table_problems: Labelled<FamilyAndReason, Counter>,
    watch_errors: Labelled<KindOnly, Counter>,
    watch_failing: Labelled<KindOnly, Gauge>,
    held_objects: Labelled<KindOnly, Gauge>,
    state_stale: Gauge,
    sockets_ended: Counter,
    client_share: Labelled<IpFamily, Gauge>,
    healthz: Labelled<Code, Counter>,
    livez: Labelled<Code, Counter>,
    pins_restored: Counter,
}

/// A page of the proxy's health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthPage {
    /// Whether load balancers may send traffic to this node.
    Healthz,
    /// Whether the proxy works.
    Livez,
}

/// The extent of a sync: all Services, or those that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    Full,
    Partial,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IpFamily {
    ip_family: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyAndFamily {
    traffic_policy: &'static str,
    ip_family: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindAndReason {
    kind: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyAndReason {
    ip_family: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindOnly {
    kind: String,
}

/// In kube-proxy's buckets: 1 ms to 16 s.
#[derive(Clone, Debug)]
struct SyncDurations(Labelled<IpFamily, Histogram>);

impl Default for SyncDurations {
    fn default() -> Self {
        let buckets = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Self(Labelled::new_with_constructor(buckets))
    }
}

/// From a change in the cluster to its effect, in kube-proxy's buckets.
#[derive(Clone, Debug)]
struct ProgrammingDurations(Labelled<IpFamily, Histogram>);

impl Default for ProgrammingDurations {
    fn default() -> Self {
        Self(Labelled::new_with_constructor(|| {
            let seconds = (1..60)
                .chain((60..120).step_by(5))
                .chain((120..=300).step_by(30));
            Histogram::new([0.25, 0.5].into_iter().chain(seconds.map(f64::from)))
        }))
    }
}

impl Metrics {
    /// A registry in which everything the agent counts is registered. Further
    /// collectors may be added to it.
    pub fn new() -> (Self, Registry) {
        let metrics = Self::default();
        let mut registry = Registry::default();
        metrics.register_kube_proxy(registry.sub_registry_with_prefix("kubeproxy"));
        metrics.register_own(registry.sub_registry_with_prefix("tandem"));
        requests::register(registry.sub_registry_with_prefix("rest_client"));
        register_build(&mut registry);
        registry.register_collector(Box::new(process::Process));
        (metrics, registry)
    }

    /// Names and meanings of kube-proxy.
    fn register_kube_proxy(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "sync_proxy_rules_duration",
            "Duration of a sync, successful or not",
            Unit::Seconds,
            self.sync.0.clone(),
        );
        registry.register_with_unit(
            "sync_full_proxy_rules_duration",
            "Duration of a sync of all Services",
            Unit::Seconds,
            self.sync_full.0.clone(),
        );
        registry.register_with_unit(
            "sync_partial_proxy_rules_duration",
            "Duration of a sync of changed Services",
            Unit::Seconds,
            self.sync_partial.0.clone(),
        );
        registry.register_with_unit(
            "sync_proxy_rules_last_timestamp",
            "Time of the last successful sync",
            Unit::Seconds,
            self.synced.clone(),
        );
        registry.register_with_unit(
            "sync_proxy_rules_last_queued_timestamp",
            "Time when a sync was last asked for",
            Unit::Seconds,
            self.sync_queued.clone(),
        );
        registry.register_with_unit(
            "network_programming_duration",
            "Time from a change of endpoints in the cluster to its effect on this node",
            Unit::Seconds,
            self.network_programming.0.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services seen",
            self.service_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of EndpointSlices seen",
            self.endpoint_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of Services that are not in force yet",
            self.services_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of EndpointSlices that are not in force yet",
            self.endpoints_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local traffic policy and endpoints on other nodes only",
            self.without_local.clone(),
        );
        registry.register(
            "proxy_healthz",
            "Answers of /healthz of the proxy's health check",
            self.healthz.clone(),
        );
        registry.register(
            "proxy_livez",
            "Answers of /livez of the proxy's health check",
            self.livez.clone(),
        );
    }

    /// Changes of Services and of EndpointSlices wait to be programmed.
    pub fn pending_changes(&self, services: usize, endpoints: usize) {
        let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.services_pending.set(count(services));
        self.endpoints_pending.set(count(endpoints));
    }

    /// Registers the metrics that kube-proxy has no name for.
    fn register_own(&self, registry: &mut Registry) {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the agent", build);
        registry.register(
            "sync_failures",
            "Syncs that failed and were tried again",
            self.sync_failures.clone(),
        );
        registry.register(
            "map_writes",
            "Changes written to the tables in the kernel",
            self.writes.clone(),
        );
        registry.register(
            "audit_repairs",
            "Table entries that someone else changed, put right",
            self.repairs.clone(),
        );
        registry.register(
            "pins_restored",
            "Times that pins which someone else had removed were made again",
            self.pins_restored.clone(),
        );
        registry.register(
            "object_problems",
            "Fields of API objects that could not be used, and objects that could not be read",
            self.object_problems.clone(),
        );
        registry.register(
            "table_problems",
            "Service ports that the tables could not hold",
            self.table_problems.clone(),
        );
        registry.register(
            "watch_errors",
            "Errors while watching the API server or the manifests",
            self.watch_errors.clone(),
        );
        registry.register(
            "watch_failing",
            "Whether a watch of the API server fails: what changes there is not seen",
            self.watch_failing.clone(),
        );
        registry.register(
            "held_objects",
            "Objects that stay for a minute although a list that lost most of them has them no more",
            self.held_objects.clone(),
        );
        registry.register(
            "state_stale",
            "Whether the state on disk is served, because the API server has not answered since the start",
            self.state_stale.clone(),
        );
        registry.register(
            "sockets_ended",
            "Connected UDP sockets ended because their backend serves no more",
            self.sockets_ended.clone(),
        );
        registry.register(
            "client_share",
            "Flows that a client may have, while the flow table is nearly full; else 0",
            self.client_share.clone(),
        );
    }

    /// Services changed.
    pub fn service_changes(&self, count: usize) {
        self.service_changes.inc_by(count as u64);
    }

    /// EndpointSlices changed.
    pub fn endpoint_changes(&self, count: usize) {
        self.endpoint_changes.inc_by(count as u64);
    }

    /// A field of an object could not be used, or the object not be read.
    pub fn object_problem(&self, kind: Kind, reason: &'static str) {
        let kind = kind.to_string();
        let labels = KindAndReason { kind, reason };
        self.object_problems.get_or_create(&labels).inc();
    }

    /// A Service port could not be held by the tables.
    pub fn table_problem<F: Family>(&self, reason: &'static str) {
        let labels = FamilyAndReason {
            ip_family: F::NAME,
            reason,
        };
        self.table_problems.get_or_create(&labels).inc();
    }

    /// A watch ended in an error, or a manifest could not be read.
    pub fn watch_error(&self, kind: &impl ToString) {
        let kind = kind.to_string();
        self.watch_errors.get_or_create(&KindOnly { kind }).inc();
    }

    /// A watch began to fail, or does not fail any more.
    pub fn watch_failing(&self, kind: &str, fails: bool) {
        let kind = kind.to_owned();
        let gauge = self.watch_failing.get_or_create(&KindOnly { kind });
        gauge.set(fails.into());
    }

    /// Objects that are held although they are missing.
    pub fn held_objects(&self, kind: Kind, count: usize) {
        let kind = kind.to_string();
        let gauge = self.held_objects.get_or_create(&KindOnly { kind });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The state on disk is served, or is not any more.
    pub fn state_stale(&self, stale: bool) {
        self.state_stale.set(stale.into());
    }

    /// Sockets of UDP backends that left were ended.
    pub fn sockets_ended(&self, count: usize) {
        self.sockets_ended.inc_by(count as u64);
    }

    /// Flows that a client may have; 0 for any number.
    pub fn client_share<F: Family>(&self, flows: u32) {
        let gauge = self.client_share.get_or_create(&family::<F>());
        gauge.set(flows.into());
    }

    /// The proxy's health check answered.
    pub fn health_answer(&self, page: HealthPage, code: u16) {
        let answers = match page {
            HealthPage::Healthz => &self.healthz,
            HealthPage::Livez => &self.livez,
        };
        answers.get_or_create(&Code { code }).inc();
    }

    /// Pins that someone else had removed were made again.
    pub fn pins_restored(&self) {
        self.pins_restored.inc();
    }

    /// A sync was asked for.
    pub fn sync_queued<F: Family>(&self) {
        self.sync_queued
            .get_or_create(&family::<F>())
            .set(unix_now());
    }

    /// A sync ended.
    pub fn sync_duration<F: Family>(&self, kind: SyncKind, duration: Duration) {
        let by_kind = match kind {
            SyncKind::Full => &self.sync_full,
            SyncKind::Partial => &self.sync_partial,
        };
        for histogram in [&self.sync, by_kind] {
            histogram
                .0
                .get_or_create(&family::<F>())
                .observe(duration.as_secs_f64());
        }
    }

    /// A sync succeeded that brought the effects of changes of those times.
    pub fn synced<F: Family>(&self, triggers: impl Iterator<Item = SystemTime>) {
        self.synced.get_or_create(&family::<F>()).set(unix_now());
        let programming = self.network_programming.0.get_or_create(&family::<F>());
        for trigger in triggers {
            programming.observe(trigger.elapsed().unwrap_or_default().as_secs_f64());
        }
    }

    /// A sync failed.
    pub fn sync_failed<F: Family>(&self) {
        self.sync_failures.get_or_create(&family::<F>()).inc();
    }

    /// Changes were written to the tables.
    pub fn writes<F: Family>(&self, count: usize) {
        self.writes
            .get_or_create(&family::<F>())
            .inc_by(count as u64);
    }

    /// Table entries were put right.
    pub fn repaired<F: Family>(&self, count: usize) {
        self.repairs
            .get_or_create(&family::<F>())
            .inc_by(count as u64);
    }

    /// Ports that drop for lack of an endpoint on this node, because of the
    /// "internal" or the "external" traffic policy.
    pub fn without_local_endpoints<F: Family>(&self, traffic_policy: &'static str, ports: usize) {
        let labels = PolicyAndFamily {
            traffic_policy,
            ip_family: F::NAME,
        };
        let ports = i64::try_from(ports).unwrap_or(i64::MAX);
        self.without_local.get_or_create(&labels).set(ports);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    major: &'static str,
    minor: &'static str,
    git_version: &'static str,
    compiler: &'static str,
    platform: String,
}

/// Registers what dashboards take the versions of components from (S116).
fn register_build(registry: &mut Registry) {
    let build = Labelled::<Build, Gauge>::default();
    let labels = Build {
        major: env!("CARGO_PKG_VERSION_MAJOR"),
        minor: env!("CARGO_PKG_VERSION_MINOR"),
        git_version: concat!("v", env!("CARGO_PKG_VERSION")),
        compiler: "rustc",
        platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    };
    build.get_or_create(&labels).set(1);
    registry.register(
        "kubernetes_build_info",
        "Version of the agent, as Kubernetes' components have it",
        build,
    );
}

#[cfg(test)]
impl Metrics {
    /// Returns the count of a problem with objects of one kind.
    pub fn object_problem_count(&self, kind: Kind, reason: &'static str) -> u64 {
        let kind = kind.to_string();
        let labels = KindAndReason { kind, reason };
        self.object_problems.get_or_create(&labels).get()
    }
}

fn family<F: Family>() -> IpFamily {
    IpFamily { ip_family: F::NAME }
}

fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[cfg(test)]
mod tests;

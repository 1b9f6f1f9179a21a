//! Every setting that kube-proxy has, and ours beside them: the field of a configuration
//! file, the flag, what values it takes, and what it means to this proxy.
//!
//! The fields are those of `kubeproxy.config.k8s.io/v1alpha1` in Kubernetes 1.36 (S99, S100),
//! the flags those of kube-proxy 1.36 (S102).

use super::value::Kind::{
    self, Address, Any, Bool, CidrList, Cidrs, Duration, Float, Gates, HostPort, Int, List,
    NodePorts, OneOf, Port, Text,
};

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The path of the field, or nothing if only a flag says it.
    pub field: &'static str,
    /// The flag, without dashes, or nothing if only a field says it.
    pub flag: &'static str,
    pub kind: Kind,
    /// The value if nobody says another.
    pub default: &'static str,
    /// Whether a zero, an empty text or an empty list is a value: elsewhere it stands for
    /// the default.
    pub zero_counts: bool,
    pub role: Role,
}

/// What a setting means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is what the flag of this name says.
    Is(&'static str),
    /// The same, where kube-proxy would run in one of these modes.
    InMode(&'static str, &'static [&'static str]),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

const NO_RULES: &str = "Tandem makes no netfilter rules and sets no marks";
const NO_IPVS: &str = "Tandem does not use IPVS";
const NO_WINDOWS: &str = "for Windows";
const JSON: &str = "Tandem speaks JSON with the API server";
const LOGS: &str = "--log-level and --log-format say how Tandem logs";
const WATCHED: &str = "the API server is watched";
const UNUSED: &str = "kube-proxy does not use it either";
const NO_PROFILES: &str = "Tandem serves no profiles";
const NO_HIDDEN: &str = "Tandem hides no metrics";
const IPTABLES: &[&str] = &["", "iptables"];
const IPVS: &[&str] = &["ipvs"];
const NFTABLES: &[&str] = &["nftables"];
const NOT_NFTABLES: &[&str] = &["", "iptables", "ipvs"];
const NOT_IPVS: &[&str] = &["", "iptables", "nftables"];

pub const MODES: &[&str] = &["", "iptables", "ipvs", "nftables"];
const LOCAL_MODES: &[&str] = &[
    "",
    "ClusterCIDR",
    "NodeCIDR",
    "BridgeInterface",
    "InterfaceNamePrefix",
];
const SCHEDULERS: &[&str] = &[
    "", "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "fo", "ovf", "mh",
];

const fn row(
    field: &'static str,
    flag: &'static str,
    kind: Kind,
    default: &'static str,
    role: Role,
) -> Setting {
    Setting {
        field,
        flag,
        kind,
        default,
        zero_counts: false,
        role,
    }
}

/// A field that is a pointer in kube-proxy's types: a zero is a value.
const fn pointer(
    field: &'static str,
    flag: &'static str,
    kind: Kind,
    default: &'static str,
    role: Role,
) -> Setting {
    Setting {
        zero_counts: true,
        ..row(field, flag, kind, default, role)
    }
}

use Role::{InMode, Is, Nothing};

/// kube-proxy's settings, one on each line.
#[rustfmt::skip]
pub const KUBE_PROXY: &[Setting] = &[
    row("featureGates", "feature-gates", Gates, "", Is("feature-gates")),
    row("clientConnection.kubeconfig", "kubeconfig", Text, "", Is("kubeconfig")),
    row("", "master", Text, "", Is("master")),
    row("clientConnection.acceptContentTypes", "", Text, "", Nothing(JSON)),
    row("clientConnection.contentType", "kube-api-content-type", Text, "application/vnd.kubernetes.protobuf", Nothing(JSON)),
    row("clientConnection.qps", "kube-api-qps", Float, "5", Is("kube-api-qps")),
    row("clientConnection.burst", "kube-api-burst", Int(0, i32::MAX as i64), "10", Is("kube-api-burst")),
    row("logging.format", "logging-format", Text, "text", Nothing(LOGS)),
    row("logging.flushFrequency", "log-flush-frequency", Any, "5s", Nothing(LOGS)),
    row("logging.verbosity", "", Int(0, i64::MAX), "0", Nothing(LOGS)),
    row("logging.vmodule", "vmodule", Any, "", Nothing(LOGS)),
    row("logging.options", "", Any, "", Nothing(LOGS)),
    row("hostnameOverride", "hostname-override", Text, "", Is("hostname-override")),
    row("bindAddress", "bind-address", Address, "0.0.0.0", Is("bind-address")),
    row("healthzBindAddress", "healthz-bind-address", HostPort(10256), "0.0.0.0:10256", Is("healthz-bind-address")),
    row("metricsBindAddress", "metrics-bind-address", HostPort(10249), "127.0.0.1:10249", Is("metrics-bind-address")),
    row("", "healthz-port", Port, "10256", Is("healthz-bind-address")),
    row("", "metrics-port", Port, "10249", Is("metrics-bind-address")),
    row("bindAddressHardFail", "bind-address-hard-fail", Bool, "false", Is("bind-address-hard-fail")),
    row("enableProfiling", "profiling", Bool, "false", Nothing(NO_PROFILES)),
    row("showHiddenMetricsForVersion", "show-hidden-metrics-for-version", Text, "", Nothing(NO_HIDDEN)),
    row("mode", "proxy-mode", OneOf(MODES), "", Nothing("Tandem has one mode; it tells which section counts")),
    pointer("iptables.masqueradeBit", "iptables-masquerade-bit", Int(0, 31), "14", Nothing(NO_RULES)),
    row("iptables.masqueradeAll", "masquerade-all", Bool, "false", InMode("masquerade-all", NOT_NFTABLES)),
    pointer("iptables.localhostNodePorts", "iptables-localhost-nodeports", Bool, "true", Is("iptables-localhost-nodeports")),
    row("iptables.syncPeriod", "", Duration(1), "60s", InMode("audit-period", IPTABLES)),
    row("iptables.minSyncPeriod", "", Duration(0), "0s", InMode("min-sync-period", IPTABLES)),
    row("", "iptables-sync-period", Duration(1), "60s", InMode("audit-period", NOT_IPVS)),
    row("", "iptables-min-sync-period", Duration(0), "0s", InMode("min-sync-period", NOT_IPVS)),
    row("ipvs.syncPeriod", "ipvs-sync-period", Duration(1), "60s", InMode("audit-period", IPVS)),
    row("ipvs.minSyncPeriod", "ipvs-min-sync-period", Duration(0), "0s", InMode("min-sync-period", IPVS)),
    row("ipvs.scheduler", "ipvs-scheduler", OneOf(SCHEDULERS), "", Nothing(NO_IPVS)),
    row("ipvs.excludeCIDRs", "ipvs-exclude-cidrs", CidrList, "", Nothing(NO_IPVS)),
    row("ipvs.strictARP", "ipvs-strict-arp", Bool, "false", Nothing(NO_IPVS)),
    row("ipvs.tcpTimeout", "ipvs-tcp-timeout", Duration(0), "0s", Nothing(NO_IPVS)),
    row("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout", Duration(0), "0s", Nothing(NO_IPVS)),
    row("ipvs.udpTimeout", "ipvs-udp-timeout", Duration(0), "0s", Nothing(NO_IPVS)),
    pointer("nftables.masqueradeBit", "", Int(0, 31), "14", Nothing(NO_RULES)),
    row("nftables.masqueradeAll", "", Bool, "false", InMode("masquerade-all", NFTABLES)),
    row("nftables.syncPeriod", "", Duration(1), "60s", InMode("audit-period", NFTABLES)),
    row("nftables.minSyncPeriod", "", Duration(0), "0s", InMode("min-sync-period", NFTABLES)),
    row("winkernel.networkName", "", Text, "", Nothing(NO_WINDOWS)),
    row("winkernel.sourceVip", "", Text, "", Nothing(NO_WINDOWS)),
    row("winkernel.enableDSR", "", Bool, "false", Nothing(NO_WINDOWS)),
    row("winkernel.rootHnsEndpointName", "", Text, "", Nothing(NO_WINDOWS)),
    row("winkernel.forwardHealthCheckVip", "", Bool, "false", Nothing(NO_WINDOWS)),
    row("windowsRunAsService", "", Bool, "false", Nothing(NO_WINDOWS)),
    row("detectLocalMode", "detect-local-mode", OneOf(LOCAL_MODES), "ClusterCIDR", Is("detect-local-mode")),
    row("detectLocal.bridgeInterface", "pod-bridge-interface", Text, "", Is("pod-bridge-interface")),
    row("detectLocal.interfaceNamePrefix", "pod-interface-name-prefix", Text, "", Is("pod-interface-name-prefix")),
    row("clusterCIDR", "cluster-cidr", Cidrs, "", Is("cluster-cidr")),
    row("nodePortAddresses", "nodeport-addresses", NodePorts, "", Is("nodeport-addresses")),
    pointer("oomScoreAdj", "oom-score-adj", Int(-1000, 1000), "-999", Is("oom-score-adj")),
    pointer("conntrack.maxPerCore", "conntrack-max-per-core", Int(0, i32::MAX as i64), "0", Is("conntrack-max-per-core")),
    pointer("conntrack.min", "conntrack-min", Int(0, i32::MAX as i64), "0", Is("conntrack-min")),
    pointer("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established", Duration(0), "0s", Is("conntrack-tcp-timeout-established")),
    pointer("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait", Duration(0), "0s", Is("conntrack-tcp-timeout-close-wait")),
    row("conntrack.tcpBeLiberal", "conntrack-tcp-be-liberal", Bool, "false", Is("conntrack-tcp-be-liberal")),
    row("conntrack.udpTimeout", "conntrack-udp-timeout", Duration(0), "0s", Is("conntrack-udp-timeout")),
    row("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream", Duration(0), "0s", Is("conntrack-udp-timeout-stream")),
    row("configSyncPeriod", "config-sync-period", Duration(1), "15m", Nothing(WATCHED)),
    row("portRange", "", Text, "", Nothing(UNUSED)),
    row("", "log-text-split-stream", Bool, "false", Nothing(LOGS)),
    row("", "log-text-info-buffer-size", Any, "0", Nothing(LOGS)),
    row("", "log-json-split-stream", Bool, "false", Nothing(LOGS)),
    row("", "log-json-info-buffer-size", Any, "0", Nothing(LOGS)),
    // Until Kubernetes 1.25, and still in what k3s and kops write.
    row("", "logtostderr", Bool, "true", Nothing(LOGS)),
    row("", "alsologtostderr", Bool, "false", Nothing(LOGS)),
    row("", "log-file", Text, "", Nothing(LOGS)),
];

/// Our own settings, in a document of our own.
#[rustfmt::skip]
pub const TANDEM: &[Setting] = &[
    row("master", "master", List, "", Is("master")),
    row("manifests", "manifests", Text, "", Is("manifests")),
    row("bpfRoot", "bpf-root", Text, "/sys/fs/bpf/tandem", Is("bpf-root")),
    row("cgroupRoot", "cgroup-root", Text, "", Is("cgroup-root")),
    row("attach", "attach", OneOf(&["auto", "tcx", "clsact"]), "auto", Is("attach")),
    row("masqueradePorts", "masquerade-ports", Text, "1024-65535", Is("masquerade-ports")),
    row("sockets.mode", "sockets", OneOf(&["all", "host", "off"]), "all", Is("sockets")),
    row("sockets.excludeCgroups", "sockets-exclude-cgroup", List, "", Is("sockets-exclude-cgroup")),
    row("tables.servicePorts", "max-service-ports", Int(1, u32::MAX as i64), "", Is("max-service-ports")),
    row("tables.endpoints", "max-endpoints", Int(1, u32::MAX as i64), "", Is("max-endpoints")),
    row("tables.flows", "flow-table-size", Int(1, u32::MAX as i64), "", Is("flow-table-size")),
    row("minSyncPeriod", "min-sync-period", Duration(0), "0s", Is("min-sync-period")),
    row("removeTaint", "remove-taint", Text, "", Is("remove-taint")),
    row("procSys", "proc-sys", Text, "/proc/sys", Is("proc-sys")),
    row("stateDir", "state-dir", Text, "/var/lib/tandem", Is("state-dir")),
    row("allowEmpty", "allow-empty", Bool, "false", Is("allow-empty")),
    row("auditPeriod", "audit-period", Duration(1), "60s", Is("audit-period")),
];

/// kube-proxy's flags that count beside a configuration file (S102).
pub const BESIDE_A_FILE: &[&str] = &["hostname-override"];

impl Setting {
    /// The flag of ours that says the same.
    pub fn target(&self) -> Option<&'static str> {
        match self.role {
            Is(flag) | InMode(flag, _) => Some(flag),
            Nothing(_) => None,
        }
    }

    /// Returns whether it counts where kube-proxy's mode is this one.
    pub fn counts_in(&self, mode: &str) -> bool {
        match self.role {
            InMode(_, modes) => modes.contains(&mode),
            Is(_) | Nothing(_) => true,
        }
    }

    /// The name by which people know it.
    pub fn name(&self) -> String {
        if self.field.is_empty() {
            format!("--{}", self.flag)
        } else {
            self.field.to_owned()
        }
    }
}

/// kube-proxy's setting of a flag.
pub fn of_flag(flag: &str) -> Option<&'static Setting> {
    KUBE_PROXY.iter().find(|setting| setting.flag == flag)
}

use std::time::Duration;

use rstest::rstest;

use super::*;
use crate::{
    cli::{Cli, command, try_parse},
    config::{DetectLocalMode, LocalDetector, settings::KUBE_PROXY},
    model::IpFamily,
    source::Source,
};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
const OURS: &str = "---\napiVersion: tandem-proxy.github.io/v1alpha1\nkind: ProxyConfiguration\n";

fn given(flags: &str) -> Given {
    let line = format!("proxy-agent run {flags}");
    let words = line.split_whitespace().map(OsString::from);
    let cli: Cli = try_parse(words).expect("a valid command line");
    cli.given
}

fn with(flags: &str, variables: &[(&str, &str)], text: &str) -> Result<Effective, LayerError> {
    let environment = |name: &str| {
        let found = variables.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| OsString::from(value))
    };
    let texts = match text {
        "" => Texts::default(),
        text => Texts::of(text),
    };
    resolve(&given(flags), &environment, &texts)
}

fn file(fields: &str) -> Effective {
    with("", &[], &format!("{HEAD}{fields}\n")).expect("a configuration")
}

fn shown(effective: &Effective, setting: &str) -> (String, Origin, String) {
    let all = effective.shown();
    let shown = all.into_iter().find(|shown| shown.setting == setting);
    let shown = shown.unwrap_or_else(|| panic!("{setting} is not shown"));
    (shown.value, shown.origin, shown.used)
}

/// kube-proxy 1.36 has these flags; all are taken (S102).
#[test]
fn every_flag_of_kube_proxy_is_taken() {
    let flags = "config write-config-to cleanup init-only feature-gates kubeconfig master \
        kube-api-content-type kube-api-burst kube-api-qps hostname-override bind-address \
        bind-address-hard-fail healthz-bind-address metrics-bind-address healthz-port \
        metrics-port profiling show-hidden-metrics-for-version proxy-mode \
        iptables-masquerade-bit masquerade-all iptables-localhost-nodeports \
        iptables-sync-period iptables-min-sync-period ipvs-sync-period ipvs-min-sync-period \
        ipvs-scheduler ipvs-exclude-cidrs ipvs-strict-arp ipvs-tcp-timeout \
        ipvs-tcpfin-timeout ipvs-udp-timeout detect-local-mode pod-bridge-interface \
        pod-interface-name-prefix cluster-cidr nodeport-addresses oom-score-adj \
        conntrack-max-per-core conntrack-min conntrack-tcp-timeout-established \
        conntrack-tcp-timeout-close-wait conntrack-tcp-be-liberal conntrack-udp-timeout \
        conntrack-udp-timeout-stream config-sync-period vmodule logging-format \
        log-flush-frequency";
    let command = command();
    for name in [&["run"][..], &["config", "show"]] {
        let command = name.iter().fold(&command, |command, name| {
            command.find_subcommand(name).expect("a command")
        });
        for flag in flags.split_whitespace() {
            let mut arguments = command.get_arguments();
            assert!(arguments.any(|a| a.get_long() == Some(flag)), "{flag}");
        }
    }
}

/// A setting of ours is a flag, and kube-proxy's settings are flags of `run` where they
/// mean something.
#[test]
fn every_setting_is_a_flag() {
    let run = crate::cli::run_command();
    for setting in KUBE_PROXY.iter().chain(settings::TANDEM) {
        if let Some(target) = setting.target() {
            let argument = run.get_arguments().find(|a| a.get_long() == Some(target));
            let argument = argument.unwrap_or_else(|| panic!("--{target} is no flag"));
            assert!(argument.get_env().is_some(), "--{target} is no variable");
        }
    }
}

/// Spellings that Go's flags take (S102).
#[rstest]
#[case("--cluster_cidr=10.0.0.0/8", "cluster-cidr", "10.0.0.0/8")]
#[case("--masquerade-all=T", "masquerade-all", "T")]
#[case("--masquerade-all", "masquerade-all", "true")]
#[case("--ipvs-strict-arp --oom-score-adj -5", "oom-score-adj", "-5")]
#[case(
    "--nodeport-addresses 10.0.0.0/8 --nodeport-addresses=primary",
    "nodeport-addresses",
    "10.0.0.0/8,primary"
)]
#[case("--proxy-mode ipvs --proxy-mode iptables", "proxy-mode", "iptables")]
fn flags_are_spelled_as_in_go(#[case] flags: &str, #[case] flag: &str, #[case] value: &str) {
    assert_eq!(given(flags).0.get(flag), Some(&value.into()));
}

#[rstest]
#[case("--v=2", 0)]
#[case("-v 2", 0)]
#[case("-v=4", 1)]
#[case("--v 9", 2)]
#[case("-v2", 0)]
#[case("-v", 1)]
#[case("-vv", 2)]
#[case("-v --masquerade-all", 1)]
fn levels_of_klog_are_understood(#[case] flags: &str, #[case] expected: u8) {
    let line = format!("proxy-agent run {flags}");
    let cli = try_parse(line.split(' ').map(OsString::from)).expect("valid");
    assert_eq!(cli.log.verbosity, expected);
}

/// Flag, environment, file, default, in this order; kube-proxy's own flags do not count
/// beside its file, but for the node's name (S102).
#[rstest]
#[case::a_file_alone("", &[], "bindAddress: '::'", "bindAddress", "::", Origin::File)]
#[case::kube_proxys_flag_is_ignored("--cluster-cidr=11.0.0.0/8", &[], "clusterCIDR: 10.0.0.0/8", "clusterCIDR", "10.0.0.0/8", Origin::File)]
#[case::also_where_the_file_is_silent("--cluster-cidr=11.0.0.0/8", &[], "", "clusterCIDR", "", Origin::Default)]
#[case::the_name_counts("--hostname-override=Node", &[], "hostnameOverride: other", "hostnameOverride", "Node", Origin::Flag)]
#[case::a_variable_counts("--cluster-cidr=11.0.0.0/8", &[("TANDEM_CLUSTER_CIDR", "12.0.0.0/8")], "clusterCIDR: 10.0.0.0/8", "clusterCIDR", "12.0.0.0/8", Origin::Environment)]
#[case::an_empty_one_does_not("", &[("TANDEM_CLUSTER_CIDR", "")], "clusterCIDR: 10.0.0.0/8", "clusterCIDR", "10.0.0.0/8", Origin::File)]
#[case::our_flag_counts("--audit-period=7s", &[], "iptables: {syncPeriod: 10s}", "iptables.syncPeriod", "7s", Origin::Flag)]
#[case::default("", &[], "", "oomScoreAdj", "-999", Origin::Default)]
fn layers_have_an_order(
    #[case] flags: &str,
    #[case] variables: &[(&str, &str)],
    #[case] fields: &str,
    #[case] setting: &str,
    #[case] value: &str,
    #[case] origin: Origin,
) {
    let effective = with(flags, variables, &format!("{HEAD}{fields}\n")).expect("valid");
    let (shown, from, _) = shown(&effective, setting);
    assert_eq!((shown.as_str(), from), (value, origin));
    let is_ignored = effective
        .warnings
        .iter()
        .any(|line| line.contains("do not count"));
    assert_eq!(
        is_ignored,
        flags.contains("cluster-cidr"),
        "{:?}",
        effective.warnings
    );
}

/// Without a file of kube-proxy its flags count, and come before the environment.
#[test]
fn flags_come_before_the_environment() {
    let variables = [
        ("TANDEM_CLUSTER_CIDR", "12.0.0.0/8"),
        ("TANDEM_MASQUERADE_ALL", "true"),
    ];
    let effective = with("--cluster-cidr=11.0.0.0/8", &variables, "").expect("valid");
    assert_eq!(shown(&effective, "clusterCIDR").0, "11.0.0.0/8");
    assert_eq!(
        shown(&effective, "iptables.masqueradeAll").1,
        Origin::Environment
    );
    assert!(effective.args.node.masquerade_all);
}

/// masqueradeAll and the periods are those of the active mode's section; ipvs has
/// masqueradeAll from iptables (S100).
#[rstest]
#[case("", true, 10, 1)]
#[case("iptables", true, 10, 1)]
#[case("ipvs", true, 20, 2)]
#[case("nftables", false, 30, 3)]
fn the_active_modes_section_counts(
    #[case] mode: &str,
    #[case] masquerade_all: bool,
    #[case] sync: u64,
    #[case] min_sync: u64,
) {
    let effective = file(&format!(
        "mode: \"{mode}\"\niptables: {{masqueradeAll: true, syncPeriod: 10s, minSyncPeriod: 1s}}\n\
         ipvs: {{syncPeriod: 20s, minSyncPeriod: 2s}}\n\
         nftables: {{masqueradeAll: false, syncPeriod: 30s, minSyncPeriod: 3s}}"
    ));
    let args = &effective.args;
    assert_eq!(args.node.masquerade_all, masquerade_all);
    assert_eq!(args.audit_period, Duration::from_secs(sync));
    assert_eq!(args.min_sync_period, Duration::from_secs(min_sync));
}

/// The periods' flags name iptables and drive nftables, too (S102).
#[rstest]
#[case("--proxy-mode=nftables --iptables-sync-period=9s", 9)]
#[case("--iptables-sync-period=9s", 9)]
#[case("--proxy-mode=ipvs --iptables-sync-period=9s", 60)]
#[case("--proxy-mode=ipvs --ipvs-sync-period=8s", 8)]
fn flags_of_periods_depend_on_the_mode(#[case] flags: &str, #[case] seconds: u64) {
    let effective = with(flags, &[], "").expect("valid");
    assert_eq!(effective.args.audit_period, Duration::from_secs(seconds));
}

/// Defaults that depend on others: addresses have the family of bindAddress (S99), and
/// nftables has NodePorts on the primary addresses alone.
#[rstest]
#[case::unset("", "0.0.0.0:10256", "127.0.0.1:10249", false)]
#[case::ipv4("bindAddress: 192.0.2.1", "0.0.0.0:10256", "127.0.0.1:10249", false)]
#[case::ipv6("bindAddress: '2001:db8::1'", "[::]:10256", "[::1]:10249", false)]
#[case::given(
    "bindAddress: '::'\nhealthzBindAddress: 127.0.0.1\nmetricsBindAddress: '::1'",
    "127.0.0.1:10256",
    "[::1]:10249",
    false
)]
#[case::nftables("mode: nftables", "0.0.0.0:10256", "127.0.0.1:10249", true)]
#[case::nftables_all(
    "mode: nftables\nnodePortAddresses: [all]",
    "0.0.0.0:10256",
    "127.0.0.1:10249",
    false
)]
fn defaults_depend_on_each_other(
    #[case] fields: &str,
    #[case] healthz: &str,
    #[case] metrics: &str,
    #[case] needs_node: bool,
) {
    let config = file(fields).config().expect("a configuration");
    assert_eq!(config.servers.health, healthz.parse().ok());
    assert_eq!(config.servers.metrics, metrics.parse().ok());
    assert_eq!(config.node.node_port_addresses.needs_node(), needs_node);
}

/// The deprecated ports turn servers off, or move them (S102).
#[rstest]
#[case("--healthz-port=0 --metrics-port=0", None, None)]
#[case(
    "--healthz-port=7 --metrics-port=8",
    Some("0.0.0.0:7"),
    Some("127.0.0.1:8")
)]
#[case(
    "--healthz-port=0 --healthz-bind-address=[::]:9",
    Some("[::]:9"),
    Some("127.0.0.1:10249")
)]
#[case("--metrics-bind-address=", Some("0.0.0.0:10256"), None)]
fn ports_turn_servers_off(
    #[case] flags: &str,
    #[case] healthz: Option<&str>,
    #[case] metrics: Option<&str>,
) {
    let config = with(flags, &[], "")
        .expect("valid")
        .config()
        .expect("valid");
    let address = |text: Option<&str>| text.map(|text| text.parse().expect("an address"));
    assert_eq!(config.servers.health, address(healthz));
    assert_eq!(config.servers.metrics, address(metrics));
}

/// `localhostNodePorts: false` means it, in both families.
#[test]
fn localhost_node_ports_can_be_off() {
    let config = file("iptables: {localhostNodePorts: false}")
        .config()
        .expect("valid");
    for (family, ip) in [(IpFamily::V4, "127.0.0.1"), (IpFamily::V6, "::1")] {
        let accepted = config.node.node_port_addresses.accepted(family, None);
        assert!(!accepted.contains(ip.parse().expect("an address")));
    }
    let config = file("").config().expect("valid");
    let accepted = config.node.node_port_addresses.accepted(IpFamily::V6, None);
    assert!(accepted.contains("::1".parse().expect("an address")));
}

#[rstest]
#[case("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface")]
#[case(
    "detectLocalMode: InterfaceNamePrefix",
    "detectLocal.interfaceNamePrefix"
)]
#[case("iptables: {minSyncPeriod: 31s}", "iptables.syncPeriod")]
#[case(
    "mode: ipvs\nipvs: {syncPeriod: 1s, minSyncPeriod: 2s}",
    "ipvs.syncPeriod"
)]
#[case(
    "mode: nftables\nnftables: {syncPeriod: 1s, minSyncPeriod: 2s}",
    "nftables.syncPeriod"
)]
fn settings_must_go_together(#[case] fields: &str, #[case] field: &str) {
    let error = with("", &[], &format!("{HEAD}{fields}\n")).expect_err("refused");
    let LayerError::Invalid(invalid) = &error else {
        panic!("{error}")
    };
    assert_eq!(invalid.field, field);
}

#[test]
fn local_detection_is_read() {
    let effective =
        file("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: eni}");
    let config = effective.config().expect("valid");
    let prefix = LocalDetector::InterfaceNamePrefix("eni".to_owned());
    assert_eq!(config.node.local_detector, prefix);
    assert_eq!(
        file("").args.node.detect_local_mode,
        DetectLocalMode::ClusterCidr
    );
}

/// Which clients are pods: as the file says, also if it says nothing, as for kube-proxy;
/// else the Node object tells, where a folder for the file is mounted (S68).
#[test]
fn without_a_file_the_node_object_tells_pods() {
    let mode = |effective: &Effective| shown(effective, "detectLocalMode").0;
    let warns = |effective: &Effective| {
        effective
            .warnings
            .iter()
            .any(|line| line.contains("no client counts as a pod"))
    };
    let silent = file("");
    assert_eq!(
        (mode(&silent).as_str(), warns(&silent)),
        ("ClusterCIDR", true)
    );
    let said = file("clusterCIDR: fd00::/8");
    assert_eq!((mode(&said).as_str(), warns(&said)), ("ClusterCIDR", false));
    let resolve =
        |flags: &str, texts: &Texts| resolve(&given(flags), &|_| None, texts).expect("valid");
    let nothing_there = Texts::of("");
    assert_eq!(mode(&resolve("", &nothing_there)), "NodeCIDR");
    assert_eq!(
        mode(&resolve("--cluster-cidr=10.0.0.0/8", &nothing_there)),
        "ClusterCIDR"
    );
    assert_eq!(mode(&resolve("", &Texts::default())), "ClusterCIDR");
}

/// Our own settings are read from our own document, and come before kube-proxy's.
#[test]
fn our_own_document_is_read() {
    let text = format!(
        "{HEAD}iptables: {{syncPeriod: 10s}}\n{OURS}auditPeriod: 5s\nsockets: {{mode: host, \
         excludeCgroups: [a, b]}}\ntables: {{flows: 65536}}\nmasqueradePorts: 2000-3000\n\
         attach: clsact\nmaster: [a:1, b:2]\n"
    );
    let effective = with("--attach=tcx", &[], &text).expect("valid");
    let args = &effective.args;
    assert_eq!(args.audit_period, Duration::from_secs(5));
    assert_eq!(args.sockets_exclude_cgroup.len(), 2);
    assert_eq!(args.tables.flow_table_size, Some(65536));
    assert_eq!(args.master, ["https://a:1", "https://b:2"]);
    assert_eq!(
        shown(&effective, "attach"),
        ("tcx".to_owned(), Origin::Flag, "yes".to_owned())
    );
    assert_eq!(shown(&effective, "sockets.mode").1, Origin::File);
}

/// A directory of manifests that is given comes before the kubeconfig of a file.
#[test]
fn manifests_come_before_a_files_kubeconfig() {
    let text = format!("{HEAD}clientConnection: {{kubeconfig: /k}}\n");
    let effective = with("--manifests=/m", &[], &text).expect("valid");
    assert_eq!(effective.args.kubeconfig, None);
    assert_eq!(effective.args.manifests, Some("/m".into()));
}

/// One line names what is said and means nothing, another what has no consumer (S102, S104).
#[test]
fn what_means_nothing_is_named_once() {
    let effective = file(
        "mode: ipvs\nipvs: {scheduler: rr, syncPeriod: 20s}\nportRange: 1-2\n\
         iptables: {syncPeriod: 10s}\nenableProfiling: true\n\
         featureGates: {AllowServiceExternalIPs: false, NativeHistograms: true}",
    );
    assert!(!effective.args.node.feature_gates.service_external_ips);
    let lines: Vec<_> = effective
        .notes
        .iter()
        .filter(|line| line.contains("mean nothing"))
        .collect();
    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    let names = line.rsplit_once(": ").expect("names").1;
    let expected = "enableProfiling, featureGates.NativeHistograms, iptables.syncPeriod, \
                    ipvs.scheduler, portRange";
    assert_eq!(names, expected);
}

#[rstest]
#[case(&[("TANDEM_ATTACH", "glue")], "TANDEM_ATTACH")]
#[case(&[("TANDEM_AUDIT_PERIOD", "0s")], "TANDEM_AUDIT_PERIOD")]
fn a_wrong_variable_is_named(#[case] variables: &[(&str, &str)], #[case] name: &str) {
    let error = with("", variables, "").expect_err("refused");
    let LayerError::Usage(text) = &error else {
        panic!("{error}")
    };
    assert!(text.contains(name) && !text.contains('\n'), "{text}");
}

/// An empty variable is one that is not set, for all flags alike.
#[test]
fn empty_variables_are_not_set() {
    let names = crate::cli::run_command();
    let names: Vec<_> = names.get_arguments().filter_map(|a| a.get_env()).collect();
    let variables: Vec<_> = names
        .iter()
        .filter_map(|name| name.to_str())
        .map(|name| (name, ""))
        .collect();
    assert!(variables.len() > 30, "{variables:?}");
    let effective = with("", &variables, "").expect("valid");
    assert_eq!(effective.values.len(), 0);
    let without = crate::cli::without_empty_variables(command(), &|_| Some(OsString::new()));
    let run = without.find_subcommand("run").expect("run");
    assert!(
        run.get_arguments()
            .all(|argument| argument.get_env().is_none())
    );
}

#[test]
fn variables_that_no_flag_has_are_named() {
    let names = [
        "TANDEM_CLUSTER_CIDR",
        "TANDEM_CLUSTER_CIDRS",
        "HOME",
        "TANDEM_LOG_LEVEL",
    ];
    let unknown = unknown_variables(names.into_iter().map(OsString::from));
    assert_eq!(unknown, ["TANDEM_CLUSTER_CIDRS"]);
}

/// What `--write-config-to` writes means what was in force (S95).
#[rstest]
#[case("")]
#[case(
    "--cluster-cidr=10.0.0.0/8 --sockets=host --proxy-mode=nftables --masquerade-all --oom-score-adj=-7 --iptables-localhost-nodeports=false"
)]
fn what_is_written_is_read_again(#[case] flags: &str) {
    let effective = with(flags, &[], "").expect("valid");
    let text = effective
        .documents()
        .map(|document| serde_saphyr::to_string(&document).expect("YAML"))
        .join("---\n");
    let again = with("", &[], &text).expect("a configuration");
    let values = |effective: &Effective| -> Vec<_> {
        let shown = effective
            .shown()
            .into_iter()
            .filter(|shown| !shown.setting.starts_with("--"));
        shown
            .map(|shown| (shown.setting, shown.value, shown.used))
            .collect()
    };
    assert_eq!(values(&again), values(&effective));
    assert!(
        !again.warnings.iter().any(|line| line.contains("left out")),
        "{:?}",
        again.warnings
    );
}

/// Configurations as distributions write them start unedited.
#[rstest]
#[case::kubeadm(include_str!("../../../tests/data/config/kubeadm.yaml"), "", "/var/lib/kube-proxy/kubeconfig.conf", "10.244.0.0/16,fd00:10:244::/48")]
#[case::eks(include_str!("../../../tests/data/config/eks.yaml"), "--v=2", "/var/lib/kube-proxy/kubeconfig", "")]
#[case::kops("", include_str!("../../../tests/data/config/kops.args"), "/var/lib/kube-proxy/kubeconfig", "100.96.0.0/11")]
#[case::k3s("", include_str!("../../../tests/data/config/k3s.args"), "/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig", "10.42.0.0/16,2001:cafe:42::/56")]
#[case::talos("", include_str!("../../../tests/data/config/talos.args"), "/etc/kubernetes/kubeconfig", "10.244.0.0/16,fd00:10:244::/56")]
fn distributions_configurations_start(
    #[case] text: &str,
    #[case] flags: &str,
    #[case] kubeconfig: &str,
    #[case] cluster_cidr: &str,
) {
    let effective = with(flags, &[], text).expect("a configuration");
    let config = effective.config().expect("a configuration");
    let Source::Kubernetes(access) = &config.source else {
        panic!("{:?}", config.source)
    };
    assert_eq!(access.kubeconfig, Some(kubeconfig.into()));
    assert_eq!(access.kubeconfig_may_miss, !text.is_empty());
    assert_eq!(
        effective.args.node.cluster_cidr,
        cluster_cidr.parse().expect("CIDRs")
    );
    if text.contains("bindAddressHardFail") {
        // kubeadm writes all fields there are, and sets few.
        assert!(effective.notes.is_empty(), "{:?}", effective.notes);
    }
    let left_out = effective
        .warnings
        .iter()
        .filter(|line| line.contains("left out"))
        .count();
    assert_eq!(
        left_out,
        usize::from(text.contains("udpIdleTimeout")),
        "{:?}",
        effective.warnings
    );
}

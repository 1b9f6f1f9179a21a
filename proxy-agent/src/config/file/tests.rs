use rstest::rstest;

use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn parse(fields: &str) -> Result<Said, FileError> {
    Texts::of(&format!("{HEAD}{fields}\n")).parse()
}

fn fields(said: &Said) -> Vec<(&'static str, &str)> {
    let entries = said.of_kube_proxy.iter().flatten();
    entries
        .map(|entry| (entry.setting.field, entry.text.as_str()))
        .collect()
}

/// Values as kube-proxy reads them; what is null, and what is zero where that means the
/// default, is not said (S99, S100).
#[rstest]
#[case("clusterCIDR: 10.0.0.0/8,fd00::/8", &[("clusterCIDR", "10.0.0.0/8,fd00::/8")])]
#[case("clusterCIDR: \"\"", &[])]
#[case("nodePortAddresses: [primary, 192.0.2.0/24, '2001:db8::/64']", &[("nodePortAddresses", "primary,192.0.2.0/24,2001:db8::/64")])]
#[case("nodePortAddresses: null", &[])]
#[case("iptables: {localhostNodePorts: false}", &[("iptables.localhostNodePorts", "false")])]
#[case("iptables: {masqueradeBit: 0, syncPeriod: 0s}", &[("iptables.masqueradeBit", "0")])]
#[case("iptables:", &[])]
#[case("conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, udpTimeout: 0s}", &[("conntrack.maxPerCore", "0"), ("conntrack.tcpEstablishedTimeout", "0s")])]
#[case("oomScoreAdj: 0", &[("oomScoreAdj", "0")])]
#[case("clientConnection: {qps: 0, burst: 20}", &[("clientConnection.burst", "20")])]
#[case("clientConnection: {qps: 2.5}", &[("clientConnection.qps", "2.5")])]
#[case("featureGates: {B: true, A: false}", &[("featureGates", "A=false,B=true")])]
#[case("healthzBindAddress: 127.0.0.1", &[("healthzBindAddress", "127.0.0.1")])]
#[case("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}", &[("detectLocalMode", "BridgeInterface"), ("detectLocal.bridgeInterface", "cni0")])]
#[case("logging: {flushFrequency: 5000000000, options: {json: {infoBufferSize: '7'}}}", &[("logging.flushFrequency", "5000000000"), ("logging.options", r#"{"json":{"infoBufferSize":"7"}}"#)])]
#[case("logging: {flushFrequency: 0, options: {json: {infoBufferSize: '0'}, text: {}}}", &[])]
fn fields_are_read_as_kube_proxy_does(#[case] text: &str, #[case] expected: &[(&str, &str)]) {
    let said = parse(text).expect("a configuration");
    assert_eq!(fields(&said), expected);
    assert!(said.warnings.is_empty(), "{:?}", said.warnings);
}

/// kube-proxy's validation, case by case: what is refused, and by which path (S101).
#[rstest]
#[case::sync_period(
    "iptables: {syncPeriod: -5s}",
    "iptables.syncPeriod",
    "must be greater than 0"
)]
#[case::sync_period_ipvs("ipvs: {syncPeriod: -5s}", "ipvs.syncPeriod", "must be greater than 0")]
#[case::sync_period_nft(
    "nftables: {syncPeriod: -5s}",
    "nftables.syncPeriod",
    "must be greater than 0"
)]
#[case::min_sync_period(
    "iptables: {minSyncPeriod: -1s}",
    "iptables.minSyncPeriod",
    "must be greater than or equal to 0"
)]
#[case::bit_below(
    "iptables: {masqueradeBit: -10}",
    "iptables.masqueradeBit",
    "must be within the range [0, 31]"
)]
#[case::bit_above(
    "nftables: {masqueradeBit: 32}",
    "nftables.masqueradeBit",
    "must be within the range [0, 31]"
)]
#[case::oom_below(
    "oomScoreAdj: -1001",
    "oomScoreAdj",
    "must be within the range [-1000, 1000]"
)]
#[case::oom_above(
    "oomScoreAdj: 1001",
    "oomScoreAdj",
    "must be within the range [-1000, 1000]"
)]
#[case::config_sync("configSyncPeriod: -1s", "configSyncPeriod", "must be greater than 0")]
#[case::mode(
    "mode: userspace",
    "mode",
    "must be iptables, ipvs, nftables, or nothing"
)]
#[case::local_mode("detectLocalMode: Pods", "detectLocalMode", "must be ClusterCIDR")]
#[case::bind_address(
    "bindAddress: 10.10.12.11:2000",
    "bindAddress",
    "not a valid textual representation"
)]
#[case::healthz_name(
    "healthzBindAddress: foo.bar:80",
    "healthzBindAddress",
    "must be IP:PORT"
)]
#[case::healthz_port(
    "healthzBindAddress: 1.2.3.4:65536",
    "healthzBindAddress",
    "must be IP:PORT"
)]
#[case::metrics_zero(
    "metricsBindAddress: 127.0.0.1:0",
    "metricsBindAddress",
    "must be a valid port"
)]
#[case::metrics_word(
    "metricsBindAddress: '127.0.0.1:foo'",
    "metricsBindAddress",
    "must be IP:PORT"
)]
#[case::cidr("clusterCIDR: 192.168.59.0", "clusterCIDR", "is not a CIDR")]
#[case::cidrs_alike(
    "clusterCIDR: 192.168.59.0/24,10.0.0.0/16",
    "clusterCIDR",
    "both CIDRs are IPv4"
)]
#[case::cidrs_alike_v6(
    "clusterCIDR: fd00::/16,fd01::/16",
    "clusterCIDR",
    "both CIDRs are IPv6"
)]
#[case::cidrs_many(
    "clusterCIDR: 10.0.0.0/8,fd00::/8,fd01::/16",
    "clusterCIDR",
    "more than two"
)]
#[case::node_ports("nodePortAddresses: [127.0.0.1]", "nodePortAddresses", "is not a CIDR")]
#[case::node_ports_word(
    "nodePortAddresses: [Primary]",
    "nodePortAddresses",
    "none of the keywords"
)]
#[case::max_per_core(
    "conntrack: {maxPerCore: -1}",
    "conntrack.maxPerCore",
    "must be greater than or equal to 0"
)]
#[case::min(
    "conntrack: {min: -1}",
    "conntrack.min",
    "must be greater than or equal to 0"
)]
#[case::established(
    "conntrack: {tcpEstablishedTimeout: -5s}",
    "conntrack.tcpEstablishedTimeout",
    "must be greater than or equal to 0"
)]
#[case::close_wait(
    "conntrack: {tcpCloseWaitTimeout: -5s}",
    "conntrack.tcpCloseWaitTimeout",
    "must be greater than or equal to 0"
)]
#[case::udp(
    "conntrack: {udpTimeout: -5s}",
    "conntrack.udpTimeout",
    "must be greater than or equal to 0"
)]
#[case::udp_stream(
    "conntrack: {udpStreamTimeout: -5s}",
    "conntrack.udpStreamTimeout",
    "must be greater than or equal to 0"
)]
#[case::burst(
    "clientConnection: {burst: -5}",
    "clientConnection.burst",
    "must be greater than or equal to 0"
)]
#[case::ipvs_timeout(
    "ipvs: {tcpTimeout: -1s}",
    "ipvs.tcpTimeout",
    "must be greater than or equal to 0"
)]
#[case::ipvs_scheduler("ipvs: {scheduler: fastest}", "ipvs.scheduler", "must be rr")]
#[case::ipvs_exclude(
    "ipvs: {excludeCIDRs: [10.0.0.1]}",
    "ipvs.excludeCIDRs",
    "is not a CIDR"
)]
#[case::no_unit(
    "iptables: {syncPeriod: '30'}",
    "iptables.syncPeriod",
    "is no duration"
)]
#[case::number(
    "iptables: {syncPeriod: 30}",
    "iptables.syncPeriod",
    "must be a text with units"
)]
#[case::text(
    "iptables: {masqueradeAll: 'yes'}",
    "iptables.masqueradeAll",
    "must be true or false"
)]
#[case::list(
    "nodePortAddresses: primary",
    "nodePortAddresses",
    "must be a list of texts"
)]
#[case::section("iptables: 7", "iptables", "must hold fields")]
#[case::gates(
    "featureGates: {A: 1}",
    "featureGates",
    "must be names, each with true or false"
)]
#[case::host("hostnameOverride: 7", "hostnameOverride", "must be a text")]
fn a_wrong_value_is_named(#[case] text: &str, #[case] field: &str, #[case] reason: &str) {
    let error = parse(text).expect_err("refused");
    let FileError::Invalid(errors) = &error else {
        panic!("{error}")
    };
    let [invalid] = &errors[..] else {
        panic!("{errors:?}")
    };
    assert_eq!(invalid.field, field);
    assert!(invalid.reason.contains(reason), "{invalid}");
    assert!(
        !invalid.value.is_empty() && !invalid.remedy.is_empty(),
        "{invalid}"
    );
    assert!(!error.to_string().contains('\n'), "{error}");
}

#[test]
fn all_wrong_values_are_named_at_once() {
    let error = parse("oomScoreAdj: 2000\nmode: none\nclusterCIDR: x").expect_err("refused");
    assert_eq!(error.to_string().lines().count(), 3, "{error}");
}

/// Strictly first, then without what nobody knows, as kube-proxy does (S96).
#[test]
fn unknown_and_repeated_fields_are_named_and_left_out() {
    let text = "udpIdleTimeout: 250ms\nconntrack: {max: 7, min: 1}\nmode: ipvs\nmode: nftables\n\
                iptables: {masqueradeAll: true, masqueradeAll: false}";
    let said = parse(text).expect("a configuration");
    assert_eq!(
        fields(&said),
        [("conntrack.min", "1"), ("mode", "nftables")]
    );
    let [unknown, repeated] = &said.warnings[..] else {
        panic!("{:?}", said.warnings)
    };
    assert!(
        unknown.contains("left out: udpIdleTimeout, conntrack.max"),
        "{unknown}"
    );
    assert!(
        repeated.contains("the last counts: mode, iptables.masqueradeAll"),
        "{repeated}"
    );
}

/// Kubernetes 1.37 has fields that 1.36 has not, and v1alpha2 will have others (S103).
#[rstest]
#[case::version(
    "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration",
    "v1alpha2 is no configuration"
)]
#[case::kind(
    "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration",
    "KubeletConfiguration"
)]
#[case::config_map("apiVersion: v1\nkind: ConfigMap", "ConfigMap of v1")]
#[case::none("mode: iptables", "neither apiVersion nor kind")]
#[case::list("[1, 2]", "neither apiVersion nor kind")]
#[case::empty("# nothing\n", "no configuration in it")]
#[case::syntax("a: [", "document 1")]
#[case::two(&format!("{HEAD}---\n{HEAD}"), "a second KubeProxyConfiguration")]
fn other_files_are_refused(#[case] text: &str, #[case] expected: &str) {
    let error = Texts::of(text).parse().expect_err("refused").to_string();
    assert!(error.contains(expected), "{error}");
}

/// A document of ours may stand beside kube-proxy's.
#[test]
fn our_own_document_may_be_in_the_same_file() {
    let text = format!(
        "{HEAD}mode: ipvs\n---\napiVersion: tandem-proxy.github.io/v1alpha1\n\
         kind: ProxyConfiguration\nsockets: {{mode: host}}\n"
    );
    let said = Texts::of(&text).parse().expect("a configuration");
    assert_eq!(fields(&said), [("mode", "ipvs")]);
    let ours = said.of_tandem.expect("ours");
    assert_eq!(
        (ours[0].setting.field, ours[0].text.as_str()),
        ("sockets.mode", "host")
    );
}

/// A `ConfigMap`'s folder has one of a few usual names, or nothing.
#[test]
fn a_folder_has_the_usual_names_or_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let paths = [folder.path().to_owned()];
    assert!(Texts::read(&paths).expect("a folder").files.is_empty());
    for name in ["kubeconfig.conf", "config.conf"] {
        fs::write(folder.path().join(name), HEAD).expect("a file");
    }
    let texts = Texts::read(&paths).expect("a folder");
    assert_eq!(texts.files.len(), 1);
    assert!(Texts::read(&[folder.path().join("absent")]).is_err());
}

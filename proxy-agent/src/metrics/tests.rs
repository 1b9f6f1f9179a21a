use std::fmt::Write as _;

use prometheus_client::encoding::text::encode;
use proxy_common::{
    counter::Counter,
    family::{V4, V6},
};

use super::*;
use crate::golden;

/// All metrics of the agent, each after it was used.
fn encoded() -> String {
    let (metrics, registry) = Metrics::new();
    metrics.sync_duration::<V4>(SyncKind::Full, Duration::from_millis(3));
    metrics.sync_duration::<V6>(SyncKind::Partial, Duration::from_millis(3));
    metrics.synced::<V6>([SystemTime::now()].into_iter());
    metrics.sync_queued::<V6>();
    metrics.sync_failed::<V4>();
    metrics.writes::<V4>(1);
    metrics.repaired::<V4>(1);
    metrics.service_changes(2);
    metrics.endpoint_changes(3);
    metrics.without_local_endpoints::<V4>("internal", 1);
    metrics.object_problem(Kind::Service, "port_number");
    metrics.table_problem::<V4>("full");
    metrics.watch_error(&Kind::Service);
    metrics.watch_failing("Service", true);
    metrics.held_objects(Kind::Service, 4);
    metrics.client_share::<V4>(0);
    metrics.health_answer(HealthPage::Healthz, 503);
    metrics.health_answer(HealthPage::Livez, 200);
    metrics.pending_changes(4, 5);
    requests::note("api:6443", "GET", Some(200), Duration::from_millis(3));
    requests::note("api:6443", "POST", None, Duration::from_millis(3));
    let mut text = String::new();
    encode(&mut text, &registry).expect("encode");
    text
}

/// Dashboards for kube-proxy look for these names (S116).
#[test]
fn names_are_those_of_kube_proxy() {
    let text = encoded();
    for line in [
        r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1"#,
        r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.004",ip_family="IPv4"} 1"#,
        r#"kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1"#,
        r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"} 1"#,
        r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"} "#,
        r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"} "#,
        "kubeproxy_sync_proxy_rules_service_changes_total 2",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 3",
        r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="internal",ip_family="IPv4"} 1"#,
        r#"kubeproxy_proxy_healthz_total{code="503"} 1"#,
        r#"kubeproxy_proxy_livez_total{code="200"} 1"#,
        r#"tandem_object_problems_total{kind="Service",reason="port_number"} 1"#,
        "tandem_build_info{version=",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "process_virtual_memory_bytes ",
        "process_start_time_seconds ",
        "process_open_fds ",
        "process_max_fds ",
        "kubeproxy_sync_proxy_rules_service_changes_pending 4",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 5",
        r#"rest_client_requests_total{code="200",host="api:6443",method="GET"} "#,
        r#"rest_client_requests_total{code="<error>",host="api:6443",method="POST"} "#,
        r#"rest_client_request_duration_seconds_bucket{le="0.005",host="api:6443",verb="GET"} "#,
        r#"kubernetes_build_info{major="0","#,
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}

/// The tables of docs/metrics.md.
fn page() -> String {
    let encoded = encoded();
    let mut page = String::from(
        "# Metrics\n\n\
         Made from the code: `UPDATE_GOLDEN=1 cargo test -p proxy-agent docs_list` writes this\n\
         page. `/metrics` is served where `--metrics-bind-address` says; counters end in `_total`\n\
         there.\n\n\
         | metric | kind | |\n|---|---|---|\n",
    );
    let about = |kind: &str, name: &str| {
        let prefix = format!("# {kind} {name} ");
        let line = encoded.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap_or_default().trim_end_matches('.').to_owned()
    };
    let names = encoded.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("# HELP ")?.split_once(' ')?;
        Some(name)
    });
    for name in names {
        let (help, kind) = (about("HELP", name), about("TYPE", name));
        let _ = writeln!(page, "| `{name}` | {kind} | {help} |");
    }
    for ([name, help], kind) in [
        (datapath::EVENTS, "counter"),
        (datapath::FLOWS, "gauge"),
        (datapath::REPLY_TUPLES, "gauge"),
    ] {
        let _ = writeln!(page, "| `{name}` | {kind} | {help} |");
    }
    page.push_str(
        "\n## Events of the datapath\n\n\
         Values of the label `event` of `tandem_datapath_events_total`, in the order of the\n\
         table `COUNTERS`.\n\n| event | |\n|---|---|\n",
    );
    for counter in Counter::ALL {
        let help = counter.help().trim().trim_end_matches('.');
        let _ = writeln!(page, "| `{}` | {help} |", counter.label());
    }
    page
}

#[test]
fn docs_list_the_metrics() {
    golden::check("docs/metrics.md", &page());
}

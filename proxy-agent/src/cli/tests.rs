use std::{fmt::Write as _, net::IpAddr, time::Duration};

use proxy_common::masquerade::PortRange;
use rstest::rstest;

use super::*;
use crate::{
    commands::explain::flow::{Transport, Via},
    config::{
        ClusterCidr, DetectLocalMode,
        node_ports::NodePortAddresses,
        settings::{self, Role, Setting},
    },
    golden,
    model::IpFamily,
    socket_lb,
};

fn parse_line(line: &str) -> Result<Cli, clap::Error> {
    try_parse(line.split(' ').map(OsString::from))
}

fn run(flags: &str) -> RunArgs {
    let line = format!("proxy-agent run {flags}");
    match parse_line(line.trim_end())
        .expect("a valid command line")
        .command
    {
        Command::Run(args) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    command().debug_assert();
}

/// Flags of `explain` that are no settings of a node. What `run` reads from its
/// environment must not answer for them.
const QUESTION: [&str; 8] = [
    "from",
    "to",
    "protocol",
    "via",
    "flows",
    "output",
    "manifests",
    "node-address",
];

/// Flags, variables and help must not drift apart.
#[test]
fn every_flag_is_a_variable_and_has_help() {
    let cli = Cli::command();
    for command in std::iter::once(&cli).chain(cli.get_subcommands()) {
        for arg in command.get_arguments() {
            assert!(
                arg.get_help().is_some(),
                "{arg} of {} has no help",
                command.get_name()
            );
            let Some(long) = arg.get_long() else { continue };
            if ["verbose", "help", "version"].contains(&long) {
                continue;
            }
            let is_said_each_time = match command.get_name() {
                "explain" => QUESTION.contains(&long),
                "cleanup" => ["force", "kube-proxy"].contains(&long),
                "run" => ["write-config-to", "init-only", "cleanup"].contains(&long),
                _ => false,
            };
            if is_said_each_time {
                assert_eq!(arg.get_env(), None, "{arg}");
                continue;
            }
            let name = format!("TANDEM_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(
                arg.get_env().and_then(|env| env.to_str()),
                Some(name.as_str())
            );
        }
    }
}

#[test]
fn defaults_are_those_of_kube_proxy_where_it_has_them() {
    let args = run("");
    assert_eq!(args.node.detect_local_mode, DetectLocalMode::ClusterCidr);
    assert_eq!(args.node.cluster_cidr, ClusterCidr::default());
    assert!(!args.node.masquerade_all);
    assert_eq!(args.node.nodeport_addresses, NodePortAddresses::default());
    assert!(args.node.feature_gates.service_external_ips);
    let metrics = "127.0.0.1:10249".parse().expect("an address");
    assert_eq!(args.metrics_bind_address, BindAddress(Some(metrics)));
    assert_eq!(
        args.paths.pins.bpf_root,
        PathBuf::from("/sys/fs/bpf/tandem")
    );
    assert_eq!(args.attach, Attach::Auto);
    assert_eq!(args.sockets, socket_lb::Mode::All);
    assert_eq!((args.kubeconfig, args.manifests), (None, None));
}

#[rstest]
#[case("--masquerade-all", true)]
#[case("--masquerade-all=true", true)]
#[case("--masquerade-all=false", false)]
fn reads_switches_as_kube_proxy_does(#[case] flags: &str, #[case] expected: bool) {
    assert_eq!(run(flags).node.masquerade_all, expected);
}

#[rstest]
#[case("AllowServiceExternalIPs=false", false)]
#[case("AllowServiceExternalIPs=true", true)]
#[case("AllowServiceExternalIPs=true,AllowServiceExternalIPs=false", false)]
#[case("NativeHistograms=true,AllowServiceExternalIPs=false", false)]
#[case("AllAlpha=false", true)]
fn reads_feature_gates(#[case] gates: &str, #[case] expected: bool) {
    let args = run(&format!("--feature-gates {gates}"));
    assert_eq!(args.node.feature_gates.service_external_ips, expected);
}

#[rstest]
#[case("0", Duration::ZERO)]
#[case("0s", Duration::ZERO)]
#[case("500ms", Duration::from_millis(500))]
#[case("1m30s", Duration::from_secs(90))]
#[case("2h", Duration::from_hours(2))]
fn reads_durations(#[case] raw: &str, #[case] expected: Duration) {
    assert_eq!(
        run(&format!("--min-sync-period {raw}")).min_sync_period,
        expected
    );
}

#[rstest]
#[case::no_subcommand("proxy-agent --log-format json")]
#[case::unknown_subcommand("proxy-agent start")]
#[case::two_sources("proxy-agent run --kubeconfig a --manifests b")]
#[case::no_cidr("proxy-agent run --cluster-cidr 10.0.0.0")]
#[case::cidrs_of_one_family("proxy-agent run --cluster-cidr 10.0.0.0/8,11.0.0.0/8")]
#[case::three_cidrs("proxy-agent run --cluster-cidr 10.0.0.0/8,fd00::/8,fd01::/16")]
#[case::no_address("proxy-agent run --nodeport-addresses 10.0.0.1")]
#[case::unknown_mode("proxy-agent run --detect-local-mode Pods")]
#[case::gate_without_value("proxy-agent run --feature-gates AllowServiceExternalIPs")]
#[case::gate_with_another_value("proxy-agent run --feature-gates AllowServiceExternalIPs=maybe")]
#[case::no_bridge("proxy-agent run --detect-local-mode BridgeInterface")]
#[case::empty_bridge("proxy-agent run --detect-local-mode BridgeInterface --pod-bridge-interface=")]
#[case::no_prefix("proxy-agent run --detect-local-mode InterfaceNamePrefix")]
#[case::no_address("proxy-agent run --metrics-bind-address localhost:10249")]
#[case::no_server("proxy-agent run --master https://")]
#[case::no_score("proxy-agent run --oom-score-adj 1001")]
#[case::negative("proxy-agent run --min-sync-period=-1s")]
#[case::port_zero("proxy-agent run --metrics-bind-address 127.0.0.1:0")]
#[case::no_size("proxy-agent run --flow-table-size 0")]
#[case::ports_reversed("proxy-agent run --masquerade-ports 2000-1024")]
#[case::port_zero_to_masquerade("proxy-agent run --masquerade-ports 0-1024")]
#[case::one_port("proxy-agent run --masquerade-ports 1024")]
#[case::no_unit("proxy-agent run --min-sync-period 5")]
#[case::no_audit("proxy-agent run --audit-period 0s")]
#[case::unknown_sockets("proxy-agent run --sockets pods")]
#[case::no_cgroup("proxy-agent run --sockets-exclude-cgroup=")]
#[case::cgroup_above("proxy-agent run --sockets-exclude-cgroup ../other")]
#[case::nothing_to_get("proxy-agent get")]
#[case::unknown_resource("proxy-agent get pods")]
#[case::unknown_family("proxy-agent get flows --family 5")]
#[case::nothing_to_explain("proxy-agent explain")]
#[case::no_destination("proxy-agent explain --from 10.0.0.1")]
#[case::no_port("proxy-agent explain --from 10.0.0.1 --to 10.96.0.1")]
#[case::no_client("proxy-agent explain --from 10.0.0 --to 10.96.0.1:80")]
#[case::unknown_protocol("proxy-agent explain --from 10.0.0.1 --to 10.96.0.1:80 --protocol icmp")]
#[case::unknown_place("proxy-agent explain --from 10.0.0.1 --to 10.96.0.1:80 --via vpn")]
#[case::one_and_many("proxy-agent explain --from 10.0.0.1 --to 10.96.0.1:80 --flows -")]
#[case::node_without_manifests(
    "proxy-agent explain --from 10.0.0.1 --to 10.96.0.1:80 --node-address 10.0.0.2"
)]
#[case::ignored_without_manifests(
    "proxy-agent explain --from 10.0.0.1 --to 10.96.0.1:80 --masquerade-all"
)]
fn nonsense_is_one_line_and_exit_code_2(#[case] line: &str) {
    let error = parse_line(line).expect_err("nonsense");
    let message = one_line(&error);
    assert!(message.starts_with("error: "), "{message}");
    assert!(!message.contains('\n') && message.len() > 20, "{message}");
    assert_eq!(error.exit_code(), i32::from(WRONG_USAGE));
}

/// A wrong value of the environment is told by its variable.
#[rstest]
#[case(
    "proxy-agent run",
    "--attach <HOW>",
    Some(" (from the environment: TANDEM_ATTACH)")
)]
#[case("proxy-agent run --attach=glue", "--attach <HOW>", None)]
#[case("proxy-agent run", "--sockets <WHOSE>", None)]
fn a_variable_at_fault_is_named(
    #[case] line: &str,
    #[case] argument: &str,
    #[case] expected: Option<&str>,
) {
    let mut error = clap::Error::new(ErrorKind::InvalidValue);
    let argument = clap::error::ContextValue::String(argument.to_owned());
    error.insert(ContextKind::InvalidArg, argument);
    let args: Vec<_> = line.split(' ').map(OsString::from).collect();
    let variable = |name: &str| (name == "TANDEM_ATTACH").then(|| "glue".into());
    assert_eq!(
        variable_at_fault(&error, &args, &variable).as_deref(),
        expected
    );
}

#[test]
fn what_is_missing_is_named() {
    let error = parse_line("proxy-agent run --detect-local-mode BridgeInterface");
    let message = one_line(&error.expect_err("nonsense"));
    assert!(message.contains("--pod-bridge-interface"), "{message}");
}

#[test]
fn reads_get() {
    let cli = parse_line("proxy-agent get flows -o json --family 6 -n shop --bpf-root /b -v");
    let cli = cli.expect("a valid command line");
    assert_eq!(cli.log.verbosity, 1);
    let expected = GetArgs {
        what: Resource::Flows,
        output: Output::Json,
        family: Some(IpFamily::V6),
        namespace: Some("shop".to_owned()),
        pins: PinArgs {
            bpf_root: "/b".into(),
        },
    };
    assert_eq!(cli.command, Command::Get(expected));
}

#[test]
fn reads_explain() {
    let line = "proxy-agent explain --from 10.0.0.1:7 --to [fd00::1]:53 --protocol udp \
                --via external -o json --manifests /m --node-address 10.0.0.2 --node-address fd00::2";
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let Command::Explain(args) = parse_line(&line).expect("valid").command else {
        panic!("{line}");
    };
    assert_eq!(args.from, "10.0.0.1:7".parse().ok());
    assert_eq!(args.to, "[fd00::1]:53".parse().ok());
    assert_eq!(
        (args.protocol, args.via),
        (Transport::Udp, Some(Via::External))
    );
    assert_eq!(args.output, Some(ExplainOutput::Json));
    assert_eq!(args.manifests, Some("/m".into()));
    let addresses = ["10.0.0.2", "fd00::2"].map(|ip| ip.parse::<IpAddr>().expect("an address"));
    assert_eq!(args.node_address, addresses);
}

#[rstest]
#[case("", PortRange::UNPRIVILEGED)]
#[case("--masquerade-ports 10000-29999", PortRange::new(10_000, 29_999).expect("a range"))]
fn reads_masquerade_ports(#[case] flags: &str, #[case] expected: PortRange) {
    assert_eq!(run(flags).masquerade_ports, expected);
}

#[test]
fn metrics_can_be_turned_off() {
    assert_eq!(
        run("--metrics-bind-address=").metrics_bind_address,
        BindAddress(None)
    );
}

#[test]
fn only_what_was_told_wrong_is_wrong_usage() {
    let filter = "proxy_agent=loud";
    let log = LogArgs {
        log_level: Some(filter.to_owned()),
        verbosity: 0,
        log_format: LogFormat::Text,
    };
    let wrong = crate::telemetry::init(&log.into(), "info")
        .expect_err("nonsense")
        .into();
    assert!(is_wrong_usage(&wrong), "{wrong:#}");
    assert!(is_wrong_usage(&ConfigError::NoName.into()));
    let failed = anyhow::anyhow!("the disk is full");
    assert!(!is_wrong_usage(&failed));
}

/// The tables of docs/flags.md: of each command's arguments, group by group.
fn flags_page() -> String {
    let mut page = String::from(
        "# Flags\n\n\
         Made from the code: `UPDATE_GOLDEN=1 cargo test -p proxy-agent docs_list` writes this page.\n\
         A flag on the command line comes before its environment variable.\n",
    );
    let mut cli = Cli::command();
    cli.build();
    for command in cli.get_subcommands() {
        if command.get_name() == "help" {
            continue;
        }
        let about = command.get_about().map(ToString::to_string);
        let _ = write!(
            page,
            "\n## proxy-agent {}\n\n{}.\n",
            command.get_name(),
            about.unwrap_or_default()
        );
        if command.get_name() == "config" {
            page.push_str("\n`config show` takes the flags of `run`, and `--output yaml|json`.\n");
            continue;
        }
        let mut groups: Vec<(&str, Vec<&clap::Arg>)> = Vec::new();
        for argument in command.get_arguments() {
            let is_built_in = ["help", "version"].contains(&argument.get_id().as_str());
            if argument.is_global_set() || argument.is_hide_set() || is_built_in {
                continue;
            }
            let heading = argument.get_help_heading().unwrap_or("Arguments");
            match groups.iter_mut().find(|(name, _)| *name == heading) {
                Some((_, members)) => members.push(argument),
                None => groups.push((heading, vec![argument])),
            }
        }
        for (heading, members) in groups {
            let _ = write!(
                page,
                "\n### {heading}\n\n| flag | environment | default | |\n|---|---|---|---|\n"
            );
            for argument in members {
                page.push_str(&flag_row(argument));
            }
        }
    }
    for (title, table) in [
        ("kube-proxy's settings", settings::KUBE_PROXY),
        ("Fields of a ProxyConfiguration", settings::TANDEM),
    ] {
        let _ = write!(
            page,
            "\n## {title}\n\n| field | flag | default | here |\n|---|---|---|---|\n"
        );
        for setting in table {
            page.push_str(&setting_row(setting));
        }
    }
    page
}

fn setting_row(setting: &Setting) -> String {
    let code = |text: &str| match text {
        "" => String::new(),
        text => format!("`{text}`"),
    };
    let flag = match setting.flag {
        "" => String::new(),
        flag => format!("`--{flag}`"),
    };
    let here = match setting.role {
        Role::Is(target) if target == setting.flag => "used".to_owned(),
        Role::Is(target) => format!("`--{target}`"),
        Role::InMode(target, modes) => {
            let modes: Vec<_> = modes
                .iter()
                .filter(|mode| !mode.is_empty())
                .copied()
                .collect();
            format!("`--{target}` where the mode is {}", modes.join(" or "))
        }
        Role::Nothing(reason) => format!("nothing: {reason}"),
    };
    format!(
        "| {} | {flag} | {} | {here} |\n",
        code(setting.field),
        code(setting.default)
    )
}

fn flag_row(argument: &clap::Arg) -> String {
    let values: Vec<_> = argument
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    let takes_value = argument.get_action().takes_values();
    let name = match argument.get_long() {
        Some(long) if takes_value => format!("`--{long} {}`", values.join(" ")),
        Some(long) => format!("`--{long}`"),
        None => format!("`{}`", values.join(" ")),
    };
    let code = |text: String| {
        if text.is_empty() {
            text
        } else {
            format!("`{text}`")
        }
    };
    let environment = argument
        .get_env()
        .map(|name| name.to_string_lossy().into_owned());
    let defaults: Vec<_> = argument
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    let default = if takes_value {
        defaults.join(",")
    } else {
        String::new()
    };
    let possible: Vec<_> = argument
        .get_possible_values()
        .iter()
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    let mut help = argument
        .get_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    if takes_value && !possible.is_empty() && !argument.get_possible_values().is_empty() {
        help = format!("{help}: {}", possible.join(", "));
    }
    format!(
        "| {} | {} | {} | {} |\n",
        name.replace('|', "\\|"),
        code(environment.unwrap_or_default()),
        code(default),
        help.replace('|', "\\|").replace('\n', " ")
    )
}

#[test]
fn docs_list_the_flags() {
    golden::check("docs/flags.md", &flags_page());
}

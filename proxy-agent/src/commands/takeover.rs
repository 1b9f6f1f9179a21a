//! `proxy-agent takeover`: how a take-over from kube-proxy stands, and which way it goes.

use std::{
    collections::HashSet,
    fs,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use proxy_common::{
    family::{V4, V6},
    flow::Flow,
    frontend::FrontendKey,
    table::Table,
};

use crate::{
    cli::{BackArgs, TakeoverAction, TakeoverArgs},
    dataplane::{
        Dataplane as _,
        foreign::ForeignTable,
        load,
        mapped::Access,
        pins::Pins,
        tables::{KernelFamily, KernelTables, open_flows},
    },
    ownership::{self, Candidate, Name},
    sys,
    takeover::{
        self, Found, Left, Translated,
        order::{self, Order},
        phase::Phase,
        rules::Rules,
        status::Status,
    },
};

/// Time that an agent needs at most to follow an order.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does what the command line says, then says how things stand on standard output.
pub fn run(args: &TakeoverArgs) -> anyhow::Result<ExitCode> {
    sys::capabilities::require_privileges()?;
    let (TakeoverAction::Status(paths)
    | TakeoverAction::Forward(paths)
    | TakeoverAction::Back(BackArgs { pins: paths, .. })) = &args.action;
    let pins = Pins::new(&paths.bpf_root);
    if !pins.map(Table::Config.name()).exists() {
        anyhow::bail!(
            "no tables below {}: is the agent running? (--bpf-root)",
            pins.root().display()
        );
    }
    match &args.action {
        TakeoverAction::Status(_) => {
            let status = status(&pins)?;
            print(&status);
            if status.objections().is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            return Ok(ExitCode::FAILURE);
        }
        TakeoverAction::Back(args) => back(&pins, args.force)?,
        TakeoverAction::Forward(_) => forward(&pins)?,
    }
    print(&status(&pins)?);
    Ok(ExitCode::SUCCESS)
}

fn print(status: &Status) {
    // Whoever closed standard output still gets the exit code.
    let _ = write!(io::stdout().lock(), "{status}");
}

/// Asks the kernel how the take-over stands.
pub(super) fn status(pins: &Pins) -> anyhow::Result<Status> {
    let found = Found::list_now().context("list the connections that netfilter knows")?;
    let v4 = flows::<V4>(pins, &found.v4)?;
    let v6 = flows::<V6>(pins, &found.v6)?;
    Ok(Status {
        phase: phase(pins)?,
        owner: ownership::owner(pins.root()).map(|owner| owner.to_string()),
        serves: v4.serves || v6.serves,
        left: v4.left + v6.left,
        by_rules: v4.by_rules + v6.by_rules,
        ours: v4.ours + v6.ours,
        rules: Rules::read().ok(),
        processes: processes(),
    })
}

fn phase(pins: &Pins) -> anyhow::Result<Phase> {
    let config = load::open_config(pins, Access::Read)?.get(0);
    Ok(Phase::of(config.map_or(0, |config| config.flags)))
}

/// The flows of one family.
struct Flows {
    serves: bool,
    left: Left,
    by_rules: Left,
    ours: Left,
}

fn flows<F: KernelFamily>(pins: &Pins, found: &[Translated<F>]) -> anyhow::Result<Flows> {
    let tables = KernelTables::<F>::open(pins, Access::Read)?.read()?;
    let foreign = ForeignTable::<F>::open(pins)?.entries()?;
    let known: HashSet<_> = foreign.keys().copied().collect();
    let mut by_rules = Left::default();
    for flow in found {
        let (port, protocol) = (flow.request.dst_port, flow.protocol);
        let is_for_service = [
            FrontendKey::new(flow.request.dst, port, protocol),
            FrontendKey::node_port(port, protocol),
        ]
        .iter()
        .any(|key| tables.frontends.contains_key(key));
        if is_for_service && !known.contains(&flow.request) {
            by_rules.count::<F>(protocol);
        }
    }
    let mut ours = Left::default();
    for entry in &open_flows::<F>(pins)? {
        let (key, flow) = entry.with_context(|| format!("read table FLOWS_{}", F::SUFFIX))?;
        let (key, flow): (proxy_common::flow::FlowKey<F::Addr>, Flow<F::Addr>) =
            (key.into(), flow.into());
        if flow.flags & Flow::<F::Addr>::OUTGOING == 0 {
            ours.count::<F>(key.protocol);
        }
    }
    Ok(Flows {
        serves: !tables.frontends.is_empty(),
        left: Left::of::<F>(&foreign),
        by_rules,
        ours,
    })
}

/// Processes of kube-proxy that can be seen from here: those of others are hidden where
/// /proc is that of a container.
fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let processes = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let process = entry.file_name().to_str()?.parse().ok()?;
        (is_kube_proxy(&entry.path())).then_some(process)
    });
    processes.collect()
}

/// Returns whether a process is kube-proxy in this network namespace.
fn is_kube_proxy(process: &Path) -> bool {
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let namespace = fs::read_link(process.join("ns/net")).ok();
    name.trim() == "kube-proxy" && namespace == fs::read_link("/proc/thread-self/ns/net").ok()
}

fn back(pins: &Pins, force: bool) -> anyhow::Result<()> {
    let has_rules = Rules::read().is_ok_and(|rules| !rules.of_kube_proxy.is_empty());
    if !has_rules && !force {
        anyhow::bail!(
            "no rules of kube-proxy are here to give new flows to: start it, wait until it is ready, and try again (--force does so anyway)"
        );
    }
    order::give(pins, Order::Back).context("leave the agent a word")?;
    follow(pins, |phase| phase == Phase::GiveBack, Phase::GiveBack)
}

fn forward(pins: &Pins) -> anyhow::Result<()> {
    order::give(pins, Order::Forward).context("leave the agent a word")?;
    if ownership::owner(pins.root()).is_none() {
        anyhow::bail!("no agent runs here; it takes over when it is started");
    }
    follow(pins, |phase| phase != Phase::GiveBack, Phase::Off)
}

/// Waits until the agent has done what it was told, or does it where there is none.
fn follow(
    pins: &Pins,
    is_done: impl Fn(Phase) -> bool,
    without_agent: Phase,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let candidate = Candidate::new(pins.root(), Name::of_this_process("takeover", ""));
    while !is_done(phase(pins)?) {
        if let Some(ownership) = candidate.try_to_own()? {
            let mut config = load::open_config(pins, Access::Write)?;
            takeover::store(&mut config, without_agent);
            drop(ownership);
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            anyhow::bail!("the agent has not followed: see its log");
        }
        sleep(PATIENCE / 100);
    }
    Ok(())
}

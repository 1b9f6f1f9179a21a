//! `proxy-agent explain`: what becomes of a new flow on this node, and why.
//!
//! ```text
//! flow ─► packet ─► program `explain` ─► decode ─► reason, text
//!                        │ looks at
//!                        ▼
//!        the pinned maps, or private ones filled from manifests
//! ```
//!
//! The programs themselves decide; nothing here knows the rules a second time.

pub mod decode;
pub mod engine;
pub mod flow;
pub mod manifests;
pub mod packet;
pub mod reason;
pub mod text;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::Path,
};

use anyhow::Context as _;

use self::{
    decode::Explanation,
    engine::Engine,
    flow::{Flow, FlowError},
};
use crate::{
    cli::{ExplainArgs, ExplainOutput},
    config::NodeConfig,
    dataplane::pins::Pins,
    sys,
};
use proxy_common::table::Table;

/// Answers on standard output.
pub fn run(args: ExplainArgs) -> anyhow::Result<()> {
    let flows = asked(&args)?;
    let node = NodeConfig::try_from(args.node.clone())?;
    sys::capabilities::require_privileges()?;
    let mut engine = match &args.manifests {
        Some(directory) => manifests::engine(directory, &node, &args.node_address)?,
        None => live(&args.pins.bpf_root)?,
    }
    .with_pods(args.node.cluster_cidr);
    let explanations = flows
        .iter()
        .map(|flow| engine.explain(flow))
        .collect::<Result<Vec<_>, _>>()?;
    let many = args.flows.is_some();
    let default = if many {
        ExplainOutput::Json
    } else {
        ExplainOutput::Text
    };
    print(&show(&explanations, args.output.unwrap_or(default), many)?)
}

/// The subject of a question.
fn asked(args: &ExplainArgs) -> anyhow::Result<Vec<Flow>> {
    if let Some(path) = &args.flows {
        return Ok(flow::read_array(&read(path)?)?);
    }
    // Without --flows, clap wants both.
    let (from, to) = args.from.zip(args.to).ok_or_else(|| {
        FlowError::NotAnArray("neither --from and --to nor --flows is given".to_owned())
    })?;
    Ok(vec![Flow::new(from, to, args.protocol, args.via)?])
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        return io::stdin()
            .read_to_string(&mut text)
            .map(|_| text)
            .context("read --flows from standard input");
    }
    fs::read_to_string(path).with_context(|| format!("read --flows {}", path.display()))
}

fn live(bpf_root: &Path) -> anyhow::Result<Engine> {
    let pins = Pins::new(bpf_root);
    if !pins.map(Table::Config.name()).exists() {
        anyhow::bail!(
            "no tables below {}: start the agent, name its --bpf-root, or ask about manifests with --manifests",
            bpf_root.display()
        );
    }
    Engine::live(&pins)
}

fn show(explanations: &[Explanation], output: ExplainOutput, many: bool) -> anyhow::Result<String> {
    let mut text = match (output, explanations) {
        (ExplainOutput::Json, [explanation]) if !many => serde_json::to_string_pretty(explanation),
        (ExplainOutput::Json, _) => serde_json::to_string_pretty(explanations),
        (ExplainOutput::Text, _) => {
            let texts: Vec<_> = explanations.iter().map(text::render).collect();
            return Ok(texts.join("\n"));
        }
    }
    .context("write JSON")?;
    text.push('\n');
    Ok(text)
}

/// Whoever closed standard output has seen enough.
fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

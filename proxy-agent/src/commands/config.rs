//! `proxy-agent config`: what is in force, and why.

use std::{fs, io::Write as _, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    cli::{
        ConfigFormat,
        layers::{Effective, Shown},
    },
    config,
};

#[derive(Serialize)]
struct Report {
    node: String,
    /// What is left out, ignored, or not known.
    warnings: Vec<String>,
    settings: Vec<Shown>,
}

/// Shows every setting on standard output.
pub fn show(effective: &Effective, unknown: &[String], format: ConfigFormat) -> anyhow::Result<()> {
    let mut warnings = effective.warnings.clone();
    warnings.extend(effective.notes.iter().cloned());
    if !unknown.is_empty() {
        warnings.push(unknown_variables(unknown));
    }
    let given = effective.args.node.hostname_override.as_deref();
    let report = Report {
        node: config::node_name(given, config::host_name)?,
        warnings,
        settings: effective.shown(),
    };
    let text = match format {
        ConfigFormat::Yaml => serde_saphyr::to_string(&report)?,
        ConfigFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// The line about variables that mean nothing.
pub fn unknown_variables(names: &[String]) -> String {
    format!(
        "environment variables that no flag has: {}; `proxy-agent run --help` names those there are",
        names.join(", ")
    )
}

/// Writes the configuration to a file, which `--config` reads.
pub fn write(effective: &Effective, path: &Path) -> anyhow::Result<()> {
    let mut text = String::new();
    for document in effective.documents() {
        if !text.is_empty() {
            text.push_str("---\n");
        }
        text.push_str(&serde_saphyr::to_string(&document)?);
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

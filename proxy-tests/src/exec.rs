//! Runs the system's tools (`ip`, `bridge`, `tc`, `nft`) and turns a failure
//! into an error that shows what the tool said.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Runs `program`, feeds it `input`, and returns what it printed.
pub fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} cannot be started"))?;
    let mut stdin = child.stdin.take().context("child has no standard input")?;
    // A tool that stops reading has failed, and says why on standard error.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);

    let output = child.wait_with_output()?;
    if !output.status.success() {
        let command = [&[program], arguments].concat().join(" ");
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{command}` failed ({}): {}\n{}",
            output.status,
            complaint.trim(),
            numbered(input)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Batch tools name the line they stumbled over.
fn numbered(input: &str) -> String {
    let lines = (1..)
        .zip(input.lines())
        .map(|(number, line)| format!("{number:4} {line}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// bpftool: the one `cargo xtask` has set up, else the system's.
pub fn bpftool() -> PathBuf {
    std::env::var_os("TANDEM_TOOLS")
        .map(|folder| PathBuf::from(folder).join("bpftool"))
        .filter(|tool| tool.exists())
        .unwrap_or_else(|| "bpftool".into())
}

//! Says what happens: steps, and commands with what they print. Every command
//! shown is the one that runs, so it can be typed again.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use proxy_tests::interrupt::{self, Interrupted};

/// The part of a command's output to print.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Show {
    All,
    /// The first lines.
    Head(usize),
}

/// Prints a line. A closed standard output ends the demo, in order.
pub(crate) fn line(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").map_err(|_| Interrupted.into())
}

/// Begins a step.
pub(crate) fn step(title: &str, text: &str) -> Result<()> {
    interrupt::check()?;
    line(&format!("\n== {title} ==\n{text}"))
}

/// Shows a file, or anything else that is several lines long.
pub(crate) fn show(title: &str, text: &str) -> Result<()> {
    line(&format!("\n{title}"))?;
    text.trim_end().lines().try_for_each(indented)
}

fn indented(text: &str) -> Result<()> {
    line(format!("    {text}").trim_end())
}

/// Runs a shell command, which must succeed, and shows what it prints.
pub(crate) fn run(command: &str, show: Show) -> Result<()> {
    interrupt::check()?;
    line(&format!("\n$ {command}"))?;
    let output = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .output()
        .context("sh cannot be started")?;
    interrupt::check()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let limit = match show {
        Show::All => usize::MAX,
        Show::Head(lines) => lines,
    };
    text.lines().take(limit).try_for_each(indented)?;
    let rest = text.lines().count().saturating_sub(limit);
    if rest > 0 {
        indented(&format!("... and {rest} more lines"))?;
    }
    ensure!(output.status.success(), "`{command}`: {}", output.status);
    Ok(())
}

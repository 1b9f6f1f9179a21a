//! The test programs that go into the virtual machine.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::exec;

/// A program made of tests.
#[derive(Debug, PartialEq)]
pub(super) struct Program {
    /// Of the target: `packets_forward`.
    pub(super) name: String,
    pub(super) file: PathBuf,
}

/// Lets cargo build the tests and returns the programs in which `arguments`
/// select at least one: no other needs to be in the virtual machine.
pub(super) fn build(cargo: &mut Command, arguments: &[OsString]) -> Result<Vec<Program>> {
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(output.status.success(), "the tests cannot be built");
    let mut programs = programs(&String::from_utf8_lossy(&output.stdout));
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    let mut chosen = Vec::new();
    for program in programs {
        if has_tests(&program, arguments)? {
            chosen.push(program);
        }
    }
    Ok(chosen)
}

fn has_tests(program: &Program, arguments: &[OsString]) -> Result<bool> {
    let mut list = Command::new(&program.file);
    list.args(arguments).args(["--list", "--format=terse"]);
    let tests = exec::output(&mut list)?;
    Ok(tests.lines().any(|line| line.ends_with(": test")))
}

/// The test programs that cargo's messages tell of.
fn programs(messages: &str) -> Vec<Program> {
    let messages = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_test = message["profile"]["test"].as_bool()?;
        let file = message["executable"].as_str()?.into();
        let name = message["target"]["name"].as_str()?.to_owned();
        is_test.then_some(Program { name, file })
    });
    messages.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_what_cargo_made_for_tests() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"name":"proxy_tests"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"bench"},"profile":{"test":false},"executable":"/t/bench"}
{"reason":"compiler-artifact","target":{"name":"restart"},"profile":{"test":true},"executable":"/t/restart-1"}
{"reason":"build-finished","success":true}"#;
        let expected = Program {
            name: "restart".to_owned(),
            file: "/t/restart-1".into(),
        };
        assert_eq!(programs(messages), [expected]);
    }
}

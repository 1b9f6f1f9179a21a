//! Exit codes and messages for wrong command lines.

use std::process::Command;

use anyhow::Result;
use proxy_tests::{Lab, Topology, agent};
use rstest::rstest;

/// Exit code 2 and one line that begins with `error:`, before anything is done.
#[rstest]
#[case::log_level(&["--log-level", "proxy_agent=loud", "check"], "proxy_agent=loud")]
#[case::flag(&["run", "--audit-period", "0s"], "--audit-period")]
#[case::subcommand(&["start"], "start")]
fn wrong_usage_is_one_line_and_exit_code_2(
    #[case] arguments: &[&str],
    #[case] named: &str,
) -> Result<()> {
    let output = Command::new(agent::binary()?).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.starts_with("error: ") && said.contains(named),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(output.stdout, b"");
    Ok(())
}

/// An agent that cannot know of any Service changes nothing on its node.
#[rstest]
#[case::manifests("--manifests")]
#[case::kubeconfig("--kubeconfig")]
fn without_its_source_it_ends_before_it_begins(#[case] flag: &str) -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let outcome = agent::command(node, &["run", "--sockets", "off", flag, "/nonexistent"]);
    let error = outcome.expect_err("there is no such file").to_string();
    assert!(error.contains("/nonexistent"), "{error}");
    assert!(!node.pins().path().exists(), "it has loaded its programs");
    Ok(())
}

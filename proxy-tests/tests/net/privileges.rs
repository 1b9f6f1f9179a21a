//! The agent's commands in a container that has only the capabilities of the
//! `DaemonSet`.

use anyhow::{Context, Result};
use proxy_tests::{AgentOptions, Lab, Topology, agent, kernel};

/// The kernel does not name programs on tcx hooks to them: they say so, rather
/// than that there are none. What they can know they show: filters, too, where
/// there is no tcx.
#[test]
fn what_cannot_be_told_is_not_called_absent() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let _agents = lab.start_agents(&AgentOptions::default())?;

    let output = agent::command_in_container(node, &["get", "devices", "--output", "json"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let can_tell = !kernel::TCX.exists();
    assert_eq!(said.contains("SYS_ADMIN"), !can_tell, "{said}");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let row = rows
        .as_array()
        .into_iter()
        .flatten()
        .find(|row| row["name"] == "eth0")
        .with_context(|| format!("no eth0 in {rows}"))?;
    for unknown in ["ingress", "egress", "attached"] {
        assert_eq!(row[unknown].is_null(), !can_tell, "{row}");
    }
    assert!(
        row["masquerade_v4"].is_string() && row["masquerade_v6"].is_string(),
        "{row}"
    );

    let output = agent::command_in_container(node, &["check"])?;
    let findings = String::from_utf8_lossy(&output.stdout);
    let about_programs = if can_tell {
        "ok    our programs are first on"
    } else {
        "warn  cannot tell which programs are on the devices"
    };
    assert!(findings.contains(about_programs), "{findings}");
    assert!(
        findings.contains("ok    privileges to load eBPF programs"),
        "{findings}"
    );

    let rows = agent::command(node, &["get", "devices", "--output", "json"])?;
    let rows: serde_json::Value = serde_json::from_str(&rows)?;
    assert_eq!(rows[0]["ingress"][0]["ours"], true, "{rows}");
    Ok(())
}

//! The document about what passes.

use std::{fmt::Write as _, fs, process::Command};

use anyhow::{Context as _, Result};

use super::{
    reasons,
    report::{Outcome, State},
};
use crate::{
    cluster::{self, spec::Proxy, versions},
    exec,
    setup::kubernetes::KUBERNETES,
    workspace,
};

/// The cluster that the tests ran in.
struct Circumstances {
    date: String,
    commit: String,
    kernel: String,
    versions: String,
    cluster: String,
    skip: String,
    control: String,
}

pub(super) fn write(
    cluster: &str,
    skip: &str,
    control: Proxy,
    tested: &[Outcome],
    other: &[Outcome],
) -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root())
        .args(["describe", "--always", "--dirty"]);
    let kernel =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let circumstances = Circumstances {
        date: exec::output(Command::new("date").args(["--utc", "+%F"]))?,
        commit: exec::output(&mut git).unwrap_or_else(|_| "unknown".to_owned()),
        kernel: kernel.trim().to_owned(),
        versions: versions(),
        cluster: cluster.to_owned(),
        skip: skip.replace('|', "\\|"),
        control: cluster::proxy_name(control),
    };
    Ok(render(&circumstances, tested, other))
}

fn render(circumstances: &Circumstances, tested: &[Outcome], other: &[Outcome]) -> String {
    let Circumstances {
        date,
        commit,
        kernel,
        versions,
        cluster,
        skip,
        control,
    } = circumstances;
    let count = |state| {
        tested
            .iter()
            .filter(|outcome| outcome.state == state)
            .count()
    };
    let mut text = format!(
        "# Kubernetes' own tests\n\n\
         Written by `cargo xtask e2e --document`: the end-to-end tests of Kubernetes that have\n\
         to do with Services, in a [cluster on one machine](cluster.md).\n\n\
         | | |\n|---|---|\n\
         | date | {date} |\n\
         | Tandem | {commit} |\n\
         | kernel | {kernel} |\n\
         | Kubernetes | {KUBERNETES} |\n\
         | others | {versions} |\n\
         | cluster | {cluster} |\n\
         | left out | `{skip}` |\n\
         | passed | {} |\n\
         | failed | {} |\n\
         | skipped themselves | {} |\n\n\
         ## Not passed\n\n\
         Those that failed ran in a cluster of the same kind with the proxy {control}, too.\n\n\
         | test | Tandem | kube-proxy | why |\n|---|---|---|---|\n",
        count(State::Passed),
        count(State::Failed),
        count(State::Skipped),
    );
    for outcome in tested
        .iter()
        .filter(|outcome| outcome.state != State::Passed)
    {
        let control = other
            .iter()
            .find(|other| other.name == outcome.name)
            .map_or_else(|| "not run".to_owned(), |other| other.state.to_string());
        let why = reasons::of(&outcome.name).unwrap_or(&outcome.message);
        let _ = writeln!(
            text,
            "| {} | {} | {control} | {} |",
            cell(&outcome.name),
            outcome.state,
            cell(why)
        );
    }
    text.push_str("\n## Passed\n\n");
    for outcome in tested
        .iter()
        .filter(|outcome| outcome.state == State::Passed)
    {
        let _ = writeln!(text, "- {}", cell(&outcome.name));
    }
    text
}

/// Text for a cell of a table, on one line.
fn cell(text: &str) -> String {
    text.trim_start_matches("[sig-network] ")
        .replace('|', "\\|")
        .replace('[', "\\[")
        .replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn outcome(name: &str, state: State) -> Outcome {
        Outcome {
            name: format!("[sig-network] {name}"),
            state,
            duration: Duration::ZERO,
            message: "timed | out".to_owned(),
        }
    }

    #[test]
    fn what_failed_stands_beside_kube_proxy() {
        let tested = [
            outcome("Services should work", State::Passed),
            outcome("Services should work too", State::Failed),
            outcome("Networking should check kube-proxy urls", State::Failed),
        ];
        let other = [outcome("Services should work too", State::Failed)];
        let text = render(
            &Circumstances {
                date: String::new(),
                commit: String::new(),
                kernel: String::new(),
                versions: String::new(),
                cluster: String::new(),
                skip: String::new(),
                control: "nftables".to_owned(),
            },
            &tested,
            &other,
        );
        for line in [
            "- Services should work",
            r"| Services should work too | fails | fails | timed \| out |",
            "| Networking should check kube-proxy urls | fails | not run | asks for kube-proxy's own addresses, such as /proxyMode |",
        ] {
            assert!(text.lines().any(|other| other == line), "{text}");
        }
    }
}

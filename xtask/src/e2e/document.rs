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

const PREAMBLE: &str = "\
# Kubernetes' own tests

Written by `cargo xtask e2e --document`: the end-to-end tests of Kubernetes that have
to do with Services, in [clusters on one machine](cluster.md), a section for each kind of
cluster. Tests that failed ran in a cluster of the same kind with another proxy, too.
";

/// What the tests ran in.
pub(super) struct Circumstances {
    date: String,
    commit: String,
    kernel: String,
    versions: String,
    cluster: String,
    skip: String,
    control: String,
}

impl Circumstances {
    pub(super) fn now(cluster: String, skip: &str, control: Proxy) -> Result<Self> {
        let mut git = Command::new("git");
        git.current_dir(workspace::root())
            .args(["describe", "--always", "--dirty"]);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("read the kernel's release")?;
        Ok(Self {
            date: exec::output(Command::new("date").args(["--utc", "+%F"]))?,
            commit: exec::output(&mut git).unwrap_or_else(|_| "unknown".to_owned()),
            kernel: kernel.trim().to_owned(),
            versions: versions(),
            cluster,
            skip: skip.replace('|', "\\|"),
            control: cluster::proxy_name(control),
        })
    }
}

/// The document with a section, in the place of that of the same cluster.
pub(super) fn with(document: &str, section: &str) -> String {
    let title = |section: &str| section.lines().next().map(str::to_owned);
    let mut sections: Vec<_> = document
        .split("\n## ")
        .skip(1)
        .map(|section| format!("## {}\n", section.trim_end()))
        .collect();
    match sections
        .iter_mut()
        .find(|other| title(other) == title(section))
    {
        Some(other) => section.clone_into(other),
        None => sections.push(section.to_owned()),
    }
    format!("{PREAMBLE}\n{}", sections.join("\n"))
}

/// The results in one kind of cluster.
pub(super) fn section(
    circumstances: &Circumstances,
    tested: &[Outcome],
    other: &[Outcome],
) -> String {
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
        "## {cluster}\n\n\
         | | |\n|---|---|\n\
         | date | {date} |\n\
         | Tandem | {commit} |\n\
         | kernel | {kernel} |\n\
         | Kubernetes | {KUBERNETES} |\n\
         | others | {versions} |\n\
         | left out | `{skip}` |\n\
         | passed | {} |\n\
         | failed | {} |\n\
         | skipped themselves | {} |\n\n\
         ### Not passed\n\n\
         | test | Tandem | {control} | why |\n|---|---|---|---|\n",
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
    text.push_str("\n### Passed\n\n");
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
    fn each_cluster_has_one_section() {
        let first = with("", "## a\n\none\n");
        let second = with(&first, "## b\n\n### Passed\n\n- two\n");
        let third = with(&second, "## a\n\nthree\n");
        assert_eq!(
            third,
            format!("{PREAMBLE}\n## a\n\nthree\n\n## b\n\n### Passed\n\n- two\n")
        );
    }

    #[test]
    fn what_failed_stands_beside_kube_proxy() {
        let tested = [
            outcome("Services should work", State::Passed),
            outcome("Services should work too", State::Failed),
            outcome("KubeProxyNFAcct should count", State::Failed),
        ];
        let other = [outcome("Services should work too", State::Failed)];
        let text = section(
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
            "| KubeProxyNFAcct should count | fails | not run | reads counters of netfilter |",
        ] {
            assert!(text.lines().any(|other| other == line), "{text}");
        }
    }
}

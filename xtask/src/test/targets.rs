//! The programs that `cargo test` makes of proxy-tests.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

/// The integration tests of proxy-tests, by what they need.
#[derive(Debug, PartialEq)]
pub(super) struct Targets {
    pub(super) net: Vec<String>,
    pub(super) kubernetes: Vec<String>,
}

impl Targets {
    /// Those whose names contain one of `parts`; without parts all of them.
    pub(super) fn of_proxy_tests(parts: &[String]) -> Result<Self> {
        let folder = workspace::root().join("proxy-tests/tests");
        if !folder.exists() {
            return Ok(Self::sort([]));
        }
        let entries = fs::read_dir(&folder)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("read {}", folder.display()))?;
        let names = entries.iter().filter_map(|entry| {
            let path = entry.path();
            let is_target = if path.is_dir() {
                path.join("main.rs").exists()
            } else {
                path.extension().is_some_and(|ending| ending == "rs")
            };
            is_target.then(|| path.file_stem()?.to_str().map(str::to_owned))?
        });
        if parts.is_empty() {
            return Ok(Self::sort(names));
        }
        let is_chosen = |name: &String| parts.iter().any(|part| name.contains(part));
        let chosen = Self::sort(names.filter(is_chosen));
        ensure!(
            !(chosen.net.is_empty() && chosen.kubernetes.is_empty()),
            "no file in {} has this in its name: {}",
            folder.display(),
            parts.join(", ")
        );
        Ok(chosen)
    }

    fn sort(names: impl IntoIterator<Item = String>) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort();
        let (kubernetes, net) = names
            .into_iter()
            .partition(|name| name.starts_with("kubernetes_"));
        Self { net, kubernetes }
    }
}

/// Tells cargo to take the targets of these names.
pub(super) fn select(cargo: &mut Command, names: &[String]) {
    for name in names {
        cargo.args(["--test", name]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_apart_by_name() {
        let names = ["kubernetes_rollout", "udp", "affinity"].map(str::to_owned);
        let expected = Targets {
            net: vec!["affinity".to_owned(), "udp".to_owned()],
            kubernetes: vec!["kubernetes_rollout".to_owned()],
        };
        assert_eq!(Targets::sort(names), expected);
    }
}

//! Every test that docs/parity.md names exists, and every file of tests is part of
//! a test program.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

/// The prefixes of tests in docs/parity.md, and the folders that they stand for.
const FOLDERS: [(&str, &str); 3] = [
    ("agent/", "proxy-agent/src/"),
    ("common/", "proxy-common/src/"),
    ("tests/", "proxy-tests/tests/"),
];

/// The test programs of proxy-tests.
const PROGRAMS: [&str; 3] = ["packets", "net", "kubernetes"];

/// Checks the page of the workspace at `root`.
pub(super) fn check(root: &Path) -> Result<()> {
    let page = fs::read_to_string(root.join("docs/parity.md")).context("read docs/parity.md")?;
    let named = tests(&page);
    ensure!(!named.is_empty(), "docs/parity.md names no test");
    for (file, function) in named {
        let source = fs::read_to_string(root.join(&file)).unwrap_or_default();
        ensure!(
            source.contains(&format!("fn {function}("))
                || source.contains(&format!("fn {function}<")),
            "docs/parity.md names {file}::{function}, which is not there"
        );
    }
    for program in PROGRAMS {
        check_modules(&root.join("proxy-tests/tests").join(program))?;
    }
    Ok(())
}

/// Checks that the `main.rs` of a test program names each file beside it: one that it
/// does not name is never compiled.
fn check_modules(folder: &Path) -> Result<()> {
    let main = fs::read_to_string(folder.join("main.rs"))?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
            continue;
        };
        ensure!(
            path.is_dir() || name == "main" || main.contains(&format!("mod {name};")),
            "{} is no module of its test program",
            path.display()
        );
    }
    Ok(())
}

/// The tests that a page names: `` `folder/file.rs::function` ``.
fn tests(page: &str) -> Vec<(String, &str)> {
    page.split('`')
        .filter_map(|code| {
            let (file, function) = code.split_once(".rs::")?;
            let folder = FOLDERS.iter().find(|(name, _)| file.starts_with(name))?;
            let file = format!("{}{}.rs", folder.1, &file[folder.0.len()..]);
            Some((file, function))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::tests;

    #[test]
    fn tests_are_found_by_their_file() {
        let page = "| S1 | `Local` | `tests/udp.rs::it_works`, `agent/a/b.rs::too`; `x.rs::y` |";
        let expected = [
            ("proxy-tests/tests/udp.rs".to_owned(), "it_works"),
            ("proxy-agent/src/a/b.rs".to_owned(), "too"),
        ];
        assert_eq!(tests(page), expected);
    }
}

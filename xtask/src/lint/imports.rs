//! One style of imports: one `use` for each crate, with all that it brings in braces, which
//! rustfmt can only do with options that are not stable.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// The folders whose sources are checked.
const CRATES: [&str; 5] = [
    "proxy-agent",
    "proxy-common",
    "proxy-ebpf",
    "proxy-tests",
    "xtask",
];

/// Checks the sources of the workspace at `root`.
pub(super) fn check(root: &Path) -> Result<()> {
    CRATES
        .iter()
        .try_for_each(|folder| check_folder(&root.join(folder)))
}

fn check_folder(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            check_folder(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            if let Some((line, import)) = repeated(&source) {
                bail!(
                    "{}:{line}: `{import}` is imported from twice; put both into one `use`",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

/// Returns the first import of a block of imports that names the same crate, with the same
/// visibility, as one before it, and its line.
fn repeated(source: &str) -> Option<(usize, &str)> {
    let mut block = BTreeSet::new();
    let mut inside = false;
    let mut conditional = false;
    for (number, line) in source.lines().enumerate() {
        let statement = line.trim_start();
        if let Some(import) = import(statement) {
            if !conditional && !block.insert((line.len() - statement.len(), import)) {
                return Some((number + 1, import));
            }
            inside = !statement.ends_with(';');
        } else if inside {
            inside = !statement.ends_with(';');
        } else if !statement.is_empty() {
            block.clear();
        }
        // One that has an attribute cannot share a `use`.
        conditional = statement.starts_with("#[");
    }
    None
}

/// Returns the crate that a line imports from, with the visibility of the import.
fn import(line: &str) -> Option<&str> {
    let path = match line.strip_prefix("pub") {
        Some(rest) => rest.split_once("use ")?.1,
        None => line.strip_prefix("use ")?,
    };
    let end = path.find([':', ';', ' ']).unwrap_or(path.len());
    let start = line.len() - path.len();
    Some(&line[..start + end])
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::repeated;

    #[rstest]
    #[case::one_each("use std::fs;\n\nuse anyhow::Result;\nuse crate::a;\n", None)]
    #[case::twice("use std::fs;\nuse std::io;\n", Some(2))]
    #[case::behind_a_long_one("use std::{\n    fs,\n    io,\n};\nuse std::env;\n", Some(5))]
    #[case::public_ones_apart("pub use a::b;\nuse a::c;\npub(crate) use a::d;\n", None)]
    #[case::public_twice("pub use a::b;\npub use a::c;\n", Some(2))]
    #[case::in_a_module("use a::b;\n\nmod tests {\n    use a::c;\n    use a::d;\n}\n", Some(5))]
    #[case::conditional("use a::b;\n#[cfg(test)]\nuse a::c;\n", None)]
    #[case::no_import("let used = 1;\nlet user = 2;\n", None)]
    fn finds_what_is_imported_twice(#[case] source: &str, #[case] line: Option<usize>) {
        assert_eq!(repeated(source).map(|(line, _)| line), line);
    }
}

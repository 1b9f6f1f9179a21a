//! Text that the code makes, beside a file of the repository that holds it.

use std::{env, fs, path::Path};

/// Compares `text` with the file at `path` below the workspace; with `UPDATE_DOCS`
/// in the environment, writes it.
pub(crate) fn check(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, text).expect("a file that can be written");
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == text,
        "{path} is not what the code says; `UPDATE_DOCS=1 cargo test -p proxy-agent` writes it"
    );
}

//! Text that the code makes, beside a file of the repository that holds it.

mod tables;

use std::{env, fs, path::Path};

/// Compares `text` with the file at `path` below the workspace; with `UPDATE_GOLDEN`
/// in the environment, writes it.
pub(crate) fn check(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if let Err(difference) = compare(&file, text) {
        panic!("{difference}");
    }
}

/// Compares as [`check`] does, and returns what differs.
fn compare(file: &Path, found: &str) -> Result<(), String> {
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(file, found).expect("a file that can be written");
    }
    let expected = fs::read_to_string(file).unwrap_or_default();
    if expected == found {
        return Ok(());
    }
    Err(format!(
        "{} is not what the code says; `UPDATE_GOLDEN=1 cargo test -p proxy-agent --lib` writes it\n\
         --- expected\n{expected}--- found\n{found}",
        file.display()
    ))
}

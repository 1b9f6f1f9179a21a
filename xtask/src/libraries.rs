//! The shared libraries that a program loads, for places that have none.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::exec;

/// Returns the libraries that a program is linked with, the loader among them.
pub(crate) fn of(program: &Path) -> Vec<PathBuf> {
    // A static program is none of ldd's, which is no failure here.
    let listed = exec::output(Command::new("ldd").arg(program)).unwrap_or_default();
    named(&listed).map(Path::to_owned).collect()
}

/// The files that `ldd` names.
fn named(listed: &str) -> impl Iterator<Item = &Path> {
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(Path::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_with_the_loader() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f1)";
        let found: Vec<_> = named(listed).collect();
        assert_eq!(
            found,
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(Path::new)
        );
    }
}

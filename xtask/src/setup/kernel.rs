//! Kernels other than the machine's own, to run tests under: Debian's, for
//! virtual machines, unpacked into the cache and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::debian::Suite;
use crate::{cache::Cache, exec, version::Version};

/// The Debian suites with kernels; the first one that has the version is used.
const SUITES: [&str; 2] = ["bookworm", "bookworm-backports"];
/// The packages of one kernel each, signed for secure boot or not.
const PACKAGES: &str = "^linux-image-[0-9].*-cloud-amd64(-unsigned)?$";

/// A kernel and its modules.
#[derive(Debug)]
pub(crate) struct Kernel {
    folder: PathBuf,
    /// The release, as `uname -r` prints it.
    pub(crate) release: String,
}

impl Kernel {
    /// The newest kernel whose first two numbers are those of `version`, from
    /// the cache if it was fetched before.
    pub(super) fn fetch(cache: &Cache, version: Version) -> Result<Self> {
        ensure!(
            cfg!(target_arch = "x86_64"),
            "other kernels can be had for x86-64 only"
        );
        let folder = cache.assemble(&format!("linux-{}", version.minor_release()), |folder| {
            exec::timed(&format!("kernel {}", version.minor_release()), || {
                unpack(cache, version, folder)
            })
        })?;
        let release = release(&folder)?;
        Ok(Self { folder, release })
    }

    /// The file to boot.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The folder of its modules, with `depmod`'s tables.
    pub(crate) fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules").join(&self.release)
    }
}

fn unpack(cache: &Cache, version: Version, folder: &Path) -> Result<()> {
    let mut seen = Vec::new();
    for name in SUITES {
        let suite = Suite::update(cache, name)?;
        let packages = suite.search(PACKAGES)?;
        if let Some(package) = newest(&packages, version) {
            suite.unpack(cache, package, |_| true, folder)?;
            let mut depmod = Command::new(exec::find("depmod").context("depmod is missing")?);
            depmod.arg("-b").arg(folder).arg(release(folder)?);
            return exec::step(&cache.log(package), &mut depmod);
        }
        seen.extend(packages.iter().filter_map(|package| minor_release(package)));
    }
    seen.sort_unstable();
    seen.dedup();
    let seen: Vec<_> = seen.into_iter().map(Version::minor_release).collect();
    bail!(
        "Debian has no Linux {} in {}, only: {}",
        version.minor_release(),
        SUITES.join(" and "),
        seen.join(", ")
    )
}

/// The one kernel in a folder where a package was unpacked.
fn release(folder: &Path) -> Result<String> {
    let modules = folder.join("lib/modules");
    let entry = fs::read_dir(&modules)
        .with_context(|| format!("read {}", modules.display()))?
        .next()
        .with_context(|| format!("{} is empty", modules.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// The newest of the packages that have a kernel of `version`.
fn newest(packages: &[String], version: Version) -> Option<&str> {
    packages
        .iter()
        .map(String::as_str)
        .filter(|package| minor_release(package).is_some_and(|found| found.same_minor(version)))
        // Of one kernel the signed package: it is what nodes have.
        .max_by_key(|package| (numbers(package), !package.ends_with("-unsigned")))
}

fn minor_release(package: &str) -> Option<Version> {
    let found = Version::find(package.strip_prefix("linux-image-")?)?;
    Some(Version::new(found.major, found.minor, 0))
}

/// All numbers of the kernel's release, `[6, 1, 0, 50]` for `6.1.0-50`.
fn numbers(package: &str) -> Vec<u32> {
    let release = package.split("-cloud").next().unwrap_or(package);
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::by_number((6, 1), Some("linux-image-6.1.0-50-cloud-amd64"))]
    #[case::only_unsigned((6, 12), Some("linux-image-6.12.95+deb12-cloud-amd64-unsigned"))]
    #[case::not_a_prefix((6, 2), None)]
    fn takes_the_newest_of_a_release(
        #[case] (major, minor): (u32, u32),
        #[case] expected: Option<&str>,
    ) {
        let packages = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-unsigned",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.95+deb12-cloud-amd64-unsigned",
            "linux-image-6.20.1+deb12-cloud-amd64",
        ]
        .map(str::to_owned);
        assert_eq!(newest(&packages, Version::new(major, minor, 0)), expected);
    }
}

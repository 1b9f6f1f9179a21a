//! Packages of another Debian suite than the installed one, unpacked into the
//! cache. Nothing is installed over the distribution: apt gets a sources list
//! and state folders of its own. The mirror is the one that the machine's apt
//! uses already.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cache::{self, Cache},
    exec,
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Unpacks the newest `package` of `suite` whose version is `wanted` into
/// `folder`, which it empties, and returns the version.
pub(super) fn unpack(
    cache: &Cache,
    suite: &str,
    package: &str,
    wanted: impl Fn(&str) -> bool,
    folder: &Path,
) -> Result<String> {
    Suite::update(cache, suite)?.unpack(cache, package, wanted, folder)
}

/// The installed release's name, such as `bookworm`, if it is Debian's.
pub(super) fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    ensure!(
        os_release(&release, "ID") == Some("debian"),
        "this is not Debian"
    );
    os_release(&release, "VERSION_CODENAME")
        .map(str::to_owned)
        .context("/etc/os-release has no VERSION_CODENAME")
}

/// apt, with a sources list of one suite.
pub(super) struct Suite {
    name: String,
    folder: PathBuf,
}

impl Suite {
    /// The suite as the mirror has it now. apt checks the signature of its
    /// index, which has the checksums of its packages.
    pub(super) fn update(cache: &Cache, suite: &str) -> Result<Self> {
        let codename = codename()?;
        ensure!(exec::find("apt-get").is_some(), "apt-get is not installed");
        let targets = exec::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(CODENAME) $(COMPONENT)",
            "Created-By: Packages",
        ]))?;
        let mirror = mirror(&targets, &codename)
            .with_context(|| format!("apt has no source for {codename} main"))?;

        let folder = cache.folder("debian").join(suite);
        cache::create(&folder.join("lists/partial"))?;
        cache::create(&folder.join("archives/partial"))?;
        let keyring = Path::new(KEYRING).exists().then_some(KEYRING);
        let sources = folder.join("sources.list");
        fs::write(&sources, sources_list(mirror, suite, keyring))
            .with_context(|| format!("write {}", sources.display()))?;
        let name = suite.to_owned();
        let apt = Self { name, folder };
        exec::step(
            &cache.log("debian"),
            apt.command("apt-get").args(["--error-on=any", "update"]),
        )?;
        Ok(apt)
    }

    /// The names of its packages that match a regular expression.
    pub(super) fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let found =
            exec::output(
                self.command("apt-cache")
                    .args(["search", "--names-only", pattern]),
            )?;
        let names = found.lines().filter_map(|line| line.split(' ').next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Unpacks the newest `package` whose version is `wanted` into `folder`,
    /// which it empties, and returns the version.
    pub(super) fn unpack(
        &self,
        cache: &Cache,
        package: &str,
        wanted: impl Fn(&str) -> bool,
        folder: &Path,
    ) -> Result<String> {
        let versions = exec::output(self.command("apt-cache").args(["madison", package]))?;
        let Some(version) = newest(&versions, wanted) else {
            bail!(
                "{} has no fitting {package}, only: {}",
                self.name,
                list(&versions)
            );
        };
        cache::remove(folder)?;
        cache::create(folder)?;
        let mut download = self.command("apt-get");
        download
            .current_dir(folder)
            .arg("download")
            .arg(format!("{package}={version}"));
        let log = cache.log(package);
        exec::step(&log, &mut download)?;
        let archive = the_archive_in(folder)?;
        let mut extract = Command::new("dpkg");
        extract.arg("-x").arg(&archive).arg(folder);
        exec::step(&log, &mut extract)?;
        fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
        Ok(version)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, file) in [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::State::Lists", "lists"),
            ("Dir::Cache::Archives", "archives"),
        ] {
            let value = self.folder.join(file);
            command
                .arg("-o")
                .arg(format!("{option}={}", value.display()));
        }
        command.args(["-o", "Dir::Etc::SourceParts=/dev/null"]);
        // The cache may be in a folder that apt's own user cannot enter.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }
}

/// Returns the URI that apt has `main` of the installed release from, out of lines of
/// `uri release codename component`.
fn mirror<'a>(targets: &'a str, codename: &str) -> Option<&'a str> {
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let uri = words.next()?;
        let (release, name, component) = (words.next()?, words.next()?, words.next()?);
        ([release, name].contains(&codename) && component == "main").then_some(uri)
    })
}

fn sources_list(mirror: &str, suite: &str, keyring: Option<&str>) -> String {
    let options = keyring.map_or(String::new(), |file| format!("[signed-by={file}] "));
    format!("deb {options}{mirror} {suite} main\n")
}

/// The versions in `apt-cache madison`'s table, newest first.
fn versions(madison: &str) -> impl Iterator<Item = &str> {
    madison
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
}

fn newest(madison: &str, wanted: impl Fn(&str) -> bool) -> Option<String> {
    versions(madison)
        .find(|version| wanted(version))
        .map(str::to_owned)
}

fn list(madison: &str) -> String {
    let all: Vec<_> = versions(madison).collect();
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(", ")
    }
}

/// One field of `/etc/os-release`.
fn os_release<'a>(text: &'a str, field: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix('='))
        .map(|value| value.trim_matches('"'))
}

fn the_archive_in(folder: &Path) -> Result<PathBuf> {
    fs::read_dir(folder)
        .with_context(|| format!("read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|file| file.extension().is_some_and(|ending| ending == "deb"))
        .with_context(|| format!("apt-get put no package into {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TARGETS: &str = "\
        https://mirror.invalid/other/ bookworm bookworm contrib\n\
        https://mirror.invalid/debian-security/ bookworm-security bookworm-security main\n\
        https://mirror.invalid/debian/ bookworm bookworm main\n\
        https://mirror.invalid/debian/ bookworm-updates bookworm-updates main";

    const MADISON: &str = "\
  rust-src | 1.96.1+dfsg1-2~bpo13+1 | https://mirror.invalid/debian trixie-backports/main amd64 Packages
  rust-src | 1.95.0+dfsg1-2~bpo13+1 | https://mirror.invalid/debian trixie-backports/main amd64 Packages";

    #[test]
    fn takes_the_mirror_of_the_installed_release() {
        let expected = "https://mirror.invalid/debian/";
        assert_eq!(mirror(TARGETS, "bookworm"), Some(expected));
    }

    #[rstest]
    #[case::alias("https://mirror.invalid/debian/ stable trixie main")]
    #[case::lists_not_fetched_yet("https://mirror.invalid/debian/ trixie $(CODENAME) main")]
    fn takes_the_mirror_under_either_name(#[case] target: &str) {
        let expected = "https://mirror.invalid/debian/";
        assert_eq!(mirror(target, "trixie"), Some(expected));
    }

    #[test]
    fn takes_no_mirror_of_another_release() {
        assert_eq!(mirror(TARGETS, "trixie"), None);
    }

    #[test]
    fn changes_only_the_suite() {
        let list = sources_list("https://mirror.invalid/debian/", "trixie-backports", None);
        assert_eq!(
            list,
            "deb https://mirror.invalid/debian/ trixie-backports main\n"
        );
    }

    #[test]
    fn checks_signatures_with_the_archives_own_keys() {
        let list = sources_list("https://mirror.invalid/debian/", "sid", Some("/keys.gpg"));
        assert!(
            list.starts_with("deb [signed-by=/keys.gpg] https:"),
            "{list}"
        );
    }

    #[rstest]
    #[case::exactly("1.95.0+", Some("1.95.0+dfsg1-2~bpo13+1"))]
    #[case::any("", Some("1.96.1+dfsg1-2~bpo13+1"))]
    #[case::none("1.97.0+", None)]
    fn picks_the_newest_wanted(#[case] prefix: &str, #[case] expected: Option<&str>) {
        let picked = newest(MADISON, |version| version.starts_with(prefix));
        assert_eq!(picked.as_deref(), expected);
    }

    #[rstest]
    #[case("ID", Some("debian"))]
    #[case("VERSION_CODENAME", Some("bookworm"))]
    #[case("VERSION", None)]
    fn reads_os_release(#[case] field: &str, #[case] expected: Option<&str>) {
        let text =
            "PRETTY_NAME=\"Debian\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian";
        assert_eq!(os_release(text, field), expected);
    }
}

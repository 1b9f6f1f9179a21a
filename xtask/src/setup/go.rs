//! Builds programs of published Go modules, from the Go module proxy.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cache::{self, Cache},
    exec,
    version::Version,
};

/// A Go module that exists only to build another one's programs.
pub(crate) struct Module {
    pub(crate) path: &'static str,
    pub(crate) version: Version,
    pub(crate) go_mod: String,
    pub(crate) go_sum: String,
    /// Source of a program of its own, for a module that is but a library.
    pub(crate) main: Option<&'static str>,
    pub(crate) tags: &'static str,
    pub(crate) linker_flags: String,
}

impl Module {
    /// Fetches the other module; begins with that one's `go.mod` and `go.sum`.
    pub(crate) fn download(cache: &Cache, path: &'static str, version: Version) -> Result<Self> {
        ensure!(
            exec::find("go").is_some(),
            "Go is needed to build {path}: install Go"
        );
        let module = format!("{path}@v{version}");
        cache::create(cache.root())?;
        let mut download = go();
        download
            .current_dir(cache.root())
            .args(["mod", "download", &module]);
        exec::step(&cache.log("go"), &mut download)?;
        let modules = exec::output(Command::new("go").args(["env", "GOMODCACHE"]))?;
        let source = Path::new(&modules).join(module);
        let read = |name: &str| {
            let file = source.join(name);
            fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
        };
        Ok(Self {
            path,
            version,
            go_mod: read("go.mod")?,
            go_sum: read("go.sum")?,
            main: None,
            tags: "",
            linker_flags: "-s -w".to_owned(),
        })
    }

    /// Builds programs, and lets `take` have the folder with them.
    pub(crate) fn build(
        &self,
        cache: &Cache,
        packages: impl IntoIterator<Item = String>,
        take: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.run(cache, &["build"], packages, take)
    }

    /// Builds the test program of a package, and lets `take` have it.
    pub(crate) fn build_test(
        &self,
        cache: &Cache,
        package: String,
        take: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.run(cache, &["test", "-c"], [package], take)
    }

    fn run(
        &self,
        cache: &Cache,
        verb: &[&str],
        packages: impl IntoIterator<Item = String>,
        take: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let name = self.path.replace('/', "_");
        let folder = cache.folder(&format!("{name}-{}.partial", self.version));
        cache::remove(&folder)?;
        // go names what it builds after the packages where this is a folder.
        let built = folder.join("bin");
        cache::create(&built)?;
        let main = self.main.map(|text| ("main.go", text));
        for (name, text) in [
            ("go.mod", self.go_mod.as_str()),
            ("go.sum", self.go_sum.as_str()),
        ]
        .into_iter()
        .chain(main)
        {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        }
        let mut go = go();
        go.current_dir(&folder)
            .args(verb)
            .args(["-mod=mod", "-trimpath", "-tags", self.tags])
            .args(["-ldflags", &self.linker_flags, "-o"])
            .arg(format!("{}/", built.display()))
            .args(packages);
        exec::step(&cache.log("go"), &mut go)?;
        take(&built)?;
        cache::remove(&folder)
    }

    /// A `go.mod` that requires the module, for the Go version it asks for.
    pub(crate) fn requiring(upstream: &str, module: &str, version: Version) -> Result<String> {
        let go = upstream
            .lines()
            .find(|line| line.starts_with("go "))
            .with_context(|| format!("go.mod of {module} {version} names no Go version"))?;
        Ok(format!(
            "module tandem.invalid/build\n\n{go}\n\nrequire {module} v{version}\n"
        ))
    }
}

/// Moves what was built to where it is looked for.
pub(crate) fn install(built: &Path, destination: &Path) -> Result<()> {
    if let Some(folder) = destination.parent() {
        cache::create(folder)?;
    }
    fs::rename(built, destination).with_context(|| format!("create {}", destination.display()))
}

/// Go, out of the way of everything else: at the lowest priority, and ended
/// with this process.
fn go() -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "nice", "-n", "19", "go"])
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0");
    command
}

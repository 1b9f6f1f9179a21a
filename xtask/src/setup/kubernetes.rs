//! A real Kubernetes control plane for tests and benchmarks: taken from the
//! machine where it has the right version, else built from the Go module
//! proxy. All programs end up in one folder, `<cache>/kubernetes-VERSION/bin`.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::go::{Module, install};
use crate::{
    cache::{self, Cache},
    exec,
    version::Version,
};

pub(crate) const KUBERNETES: Version = Version::new(1, 36, 3);
const ETCD: Version = Version::new(3, 6, 16);

const KUBERNETES_MODULE: &str = "k8s.io/kubernetes";
const ETCD_MODULE: &str = "go.etcd.io/etcd/server/v3";

/// One program of the control plane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Program {
    name: &'static str,
    version: Version,
    source: Source,
    /// The arguments with which it prints its version.
    version_arguments: &'static [&'static str],
}

/// Where a program comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    /// The programs of Kubernetes.
    Commands,
    /// A package.
    Package(&'static str),
    /// The tests of a package.
    Tests(&'static str),
}

const fn kubernetes(name: &'static str) -> Program {
    Program {
        name,
        version: KUBERNETES,
        source: Source::Commands,
        version_arguments: &["--version"],
    }
}

const fn from(name: &'static str, source: Source) -> Program {
    Program {
        source,
        ..kubernetes(name)
    }
}

impl Program {
    fn package(&self) -> String {
        match self.source {
            Source::Commands => format!("{KUBERNETES_MODULE}/cmd/{}", self.name),
            Source::Package(path) | Source::Tests(path) => path.to_owned(),
        }
    }
}

/// The programs that the tests start.
pub(crate) const CONTROL_PLANE: &[Program] = &[
    kubernetes("kube-apiserver"),
    kubernetes("kube-controller-manager"),
    KUBECTL,
    ETCD_SERVER,
];

/// The control plane, and the proxy that benchmarks compare with.
pub(crate) const ALL: &[Program] = &[
    kubernetes("kube-apiserver"),
    kubernetes("kube-controller-manager"),
    KUBECTL,
    ETCD_SERVER,
    kubernetes("kube-proxy"),
];

/// The programs of a cluster with nodes.
pub(crate) const CLUSTER: &[Program] = &[
    kubernetes("kube-apiserver"),
    kubernetes("kube-controller-manager"),
    KUBECTL,
    ETCD_SERVER,
    kubernetes("kube-proxy"),
    kubernetes("kube-scheduler"),
    kubernetes("kubelet"),
    from(
        "agnhost",
        Source::Package("k8s.io/kubernetes/test/images/agnhost"),
    ),
];

/// The end-to-end tests of Kubernetes, and what runs them.
pub(crate) const END_TO_END: &[Program] = &[
    from("e2e.test", Source::Tests("k8s.io/kubernetes/test/e2e")),
    from(
        "ginkgo",
        Source::Package("github.com/onsi/ginkgo/v2/ginkgo"),
    ),
    from(
        "regression-issue-74839",
        Source::Package("k8s.io/kubernetes/test/images/regression-issue-74839"),
    ),
];

const KUBECTL: Program = Program {
    version_arguments: &["version", "--client"],
    ..kubernetes("kubectl")
};

const ETCD_SERVER: Program = Program {
    version: ETCD,
    ..kubernetes("etcd")
};

/// Programs on their way into the cache.
pub(crate) struct Preparation {
    folder: PathBuf,
    build: Option<(Instant, JoinHandle<Result<()>>)>,
}

/// Begins to make `programs` available. What has to be built is built in the
/// background, at the lowest priority.
pub(crate) fn start(cache: &Cache, programs: &'static [Program]) -> Preparation {
    let folder = folder(cache);
    let build = (!missing(&folder, programs).is_empty()).then(|| {
        eprintln!("xtask: Kubernetes {KUBERNETES} and etcd {ETCD}, in the background ...");
        let cache = cache.clone();
        let work = move || prepare(&cache, programs);
        (Instant::now(), thread::spawn(work))
    });
    Preparation { folder, build }
}

impl Preparation {
    /// Waits for the programs and returns the folder that has them.
    pub(crate) fn finish(self) -> Result<PathBuf> {
        if let Some((start, build)) = self.build {
            if !build.is_finished() {
                eprintln!("xtask: waiting for Kubernetes {KUBERNETES} ...");
            }
            build
                .join()
                .map_err(|_| anyhow!("the build of Kubernetes panicked"))?
                .with_context(|| format!("Kubernetes {KUBERNETES} cannot be had"))?;
            let duration = exec::seconds(start.elapsed());
            eprintln!("xtask: Kubernetes {KUBERNETES} and etcd {ETCD}: {duration}");
        }
        Ok(self.folder)
    }
}

/// The folder that has the programs.
pub(crate) fn folder(cache: &Cache) -> PathBuf {
    cache
        .folder(&format!("kubernetes-{KUBERNETES}"))
        .join("bin")
}

fn missing(folder: &Path, programs: &[Program]) -> Vec<Program> {
    programs
        .iter()
        .filter(|program| !folder.join(program.name).exists())
        .copied()
        .collect()
}

fn prepare(cache: &Cache, programs: &[Program]) -> Result<()> {
    let _lock = cache.lock("kubernetes")?;
    let folder = folder(cache);
    for program in missing(&folder, programs) {
        if let Some(installed) = installed(program) {
            cache::link(&installed, &folder.join(program.name))?;
        }
    }
    let (etcd, kubernetes): (Vec<_>, Vec<_>) = missing(&folder, programs)
        .into_iter()
        .partition(|program| *program == ETCD_SERVER);
    if etcd.is_empty() && kubernetes.is_empty() {
        return Ok(());
    }
    ensure!(
        exec::find("go").is_some(),
        "Go is needed to build it: install Go, or set KUBEBUILDER_ASSETS to a folder with {}",
        programs
            .iter()
            .map(|program| program.name)
            .collect::<Vec<_>>()
            .join(", ")
    );
    if !kubernetes.is_empty() {
        build_kubernetes(cache, &kubernetes, &folder)?;
    }
    if !etcd.is_empty() {
        build_etcd(cache, &folder)?;
    }
    Ok(())
}

/// The machine's own, if its version is close enough to the pinned one.
fn installed(program: Program) -> Option<PathBuf> {
    let assets =
        env::var_os("KUBEBUILDER_ASSETS").map(|folder| Path::new(&folder).join(program.name));
    [assets, exec::find(program.name)]
        .into_iter()
        .flatten()
        .filter(|file| file.is_file())
        .find(|file| {
            exec::output(Command::new(file).args(program.version_arguments))
                .ok()
                .and_then(|text| Version::find(&text))
                .is_some_and(|version| version.same_minor(program.version))
        })
}

fn build_kubernetes(cache: &Cache, programs: &[Program], folder: &Path) -> Result<()> {
    let mut module = Module::download(cache, KUBERNETES_MODULE, KUBERNETES)?;
    module.go_mod = kubernetes_go_mod(&module.go_mod)?;
    // Without these the API server calls itself v0.0.0 and refuses its own
    // feature gates.
    let Version { major, minor, .. } = KUBERNETES;
    let version = "k8s.io/component-base/version";
    module.linker_flags = format!(
        "-s -w -X {version}.gitVersion=v{KUBERNETES} \
         -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    );
    let take = |built: &Path| {
        for program in programs
            .iter()
            .filter(|program| built.join(program.name).exists())
        {
            install(&built.join(program.name), &folder.join(program.name))?;
        }
        Ok(())
    };
    let (tests, mains): (Vec<_>, Vec<_>) = programs
        .iter()
        .partition(|program| matches!(program.source, Source::Tests(_)));
    if !mains.is_empty() {
        module.build(cache, mains.iter().copied().map(Program::package), take)?;
    }
    for program in tests {
        module.build_test(cache, program.package(), take)?;
    }
    Ok(())
}

fn build_etcd(cache: &Cache, folder: &Path) -> Result<()> {
    let mut module = Module::download(cache, ETCD_MODULE, ETCD)?;
    module.go_mod = etcd_go_mod(&module.go_mod)?;
    module.build(cache, [ETCD_MODULE.to_owned()], |built| {
        // Go names a program after its module's last word, versions left out.
        install(&built.join("server"), &folder.join(ETCD_SERVER.name))
    })
}

/// A `go.mod` that requires Kubernetes. Its own names the modules that are
/// developed in its tree only by path; they are published as v0.MINOR.PATCH.
fn kubernetes_go_mod(upstream: &str) -> Result<String> {
    let staging: Vec<_> = upstream
        .lines()
        .filter_map(|line| {
            let (module, target) = line.split_once("=>")?;
            let module = module.trim().trim_start_matches("replace ").trim();
            target.trim().starts_with("./staging/").then_some(module)
        })
        .collect();
    if staging.is_empty() {
        bail!("go.mod of {KUBERNETES_MODULE} {KUBERNETES} replaces no staging module");
    }
    let mut text = Module::requiring(upstream, KUBERNETES_MODULE, KUBERNETES)?;
    text.push_str("\nreplace (\n");
    let Version { minor, patch, .. } = KUBERNETES;
    for module in staging {
        writeln!(text, "\t{module} => {module} v0.{minor}.{patch}").context("write go.mod")?;
    }
    text.push_str(")\n");
    Ok(text)
}

fn etcd_go_mod(upstream: &str) -> Result<String> {
    Module::requiring(upstream, ETCD_MODULE, ETCD)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const UPSTREAM: &str = "\
module k8s.io/kubernetes

go 1.26.0

godebug default=go1.26

require (
	k8s.io/api v0.0.0
)

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/client-go => ./staging/src/k8s.io/client-go
	example.invalid/other => example.invalid/fork v1.2.3
)
";

    #[test]
    fn staging_modules_become_published_ones() {
        let text = kubernetes_go_mod(UPSTREAM).unwrap();
        let expected = "\
module tandem.invalid/build

go 1.26.0

require k8s.io/kubernetes v1.36.3

replace (
	k8s.io/api => k8s.io/api v0.36.3
	k8s.io/client-go => k8s.io/client-go v0.36.3
)
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_go_mod_without_staging_modules_is_refused() {
        let error = kubernetes_go_mod("module k8s.io/kubernetes\n\ngo 1.26.0\n").unwrap_err();
        assert!(error.to_string().contains("staging"), "{error}");
    }

    #[test]
    fn etcd_needs_no_replacement() {
        let text = etcd_go_mod("module go.etcd.io/etcd/server/v3\n\ngo 1.26.0\n").unwrap();
        assert!(
            text.ends_with("require go.etcd.io/etcd/server/v3 v3.6.16\n"),
            "{text}"
        );
    }

    #[test]
    fn only_what_is_not_there_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kubectl"), "").unwrap();
        let names: Vec<_> = missing(folder.path(), CONTROL_PLANE)
            .iter()
            .map(|program| program.name)
            .collect();
        assert_eq!(names, ["kube-apiserver", "kube-controller-manager", "etcd"]);
    }
}

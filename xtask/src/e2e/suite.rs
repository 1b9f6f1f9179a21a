//! Runs the test program of Kubernetes against a cluster.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::report::{self, Outcome};
use crate::{
    cache::{self, Cache},
    cluster::{
        credentials::Credentials,
        images::{AGNHOST, BUSYBOX, PAUSE, REGRESSION, TOOLS, WEB},
        node::Nodes,
        node_programs,
        place::{OUTSIDE, Place},
        spec::Spec,
    },
    exec,
    setup::kubernetes,
};

/// Where the tests are told to find all images.
const REPOSITORY: &str = "tandem.invalid/e2e";

/// Our images, by a part of the name that the tests ask for.
const IMAGES: [(&str, &str); 7] = [
    ("-agnhost-2-", AGNHOST),
    ("-busybox-", BUSYBOX),
    ("-distroless-iptables-", TOOLS),
    ("-glibc-dns-testing-", TOOLS),
    ("-nginx-", WEB),
    ("-pause-", PAUSE),
    ("-regression-issue-74839-", REGRESSION),
];

pub(super) struct Suite<'a> {
    pub(super) cache: &'a Cache,
    pub(super) place: &'a Place,
    pub(super) spec: &'a Spec,
    /// The folder for reports.
    pub(super) results: PathBuf,
}

impl Suite<'_> {
    /// Gives the images of all nodes the names that the tests ask for.
    pub(super) fn name_images(&self) -> Result<()> {
        let mut list = Command::new(self.program("e2e.test"));
        list.arg("--list-images").env("KUBE_TEST_REPO", REPOSITORY);
        let wanted = exec::output(&mut list)?;
        let programs = node_programs(self.cache, self.spec)?;
        let nodes = Nodes {
            place: self.place,
            spec: self.spec,
            programs: &programs,
        };
        for (number, _) in self.spec.nodes() {
            for (name, image) in names(&wanted) {
                let mut tag = nodes.enter(number, "ctr")?;
                tag.args([
                    "--namespace",
                    "k8s.io",
                    "images",
                    "tag",
                    "--force",
                    image,
                    name,
                ]);
                exec::output(&mut tag)?;
            }
        }
        Ok(())
    }

    /// Runs the tests that match, and returns what came of each.
    pub(super) fn run(
        &self,
        focus: &str,
        skip: &str,
        processes: u8,
        limit: Duration,
    ) -> Result<Vec<Outcome>> {
        cache::remove(&self.results)?;
        cache::create(&self.results)?;
        let log = self.results.join("log");
        let report = self.results.join("report.json");
        // Tests want to be known from nodes by their addresses.
        let mut ginkgo = self.place.at(OUTSIDE, "setpriv");
        ginkgo
            // A fall of this process ends the tests, too.
            .args(["--pdeathsig", "TERM"])
            .arg(self.program("ginkgo"))
            .arg(format!("--procs={processes}"))
            .arg(format!("--focus={focus}"))
            .arg(format!("--skip={skip}"))
            .arg(format!("--timeout={}s", limit.as_secs()))
            .args(["--no-color", "--silence-skips"])
            .arg(format!("--output-dir={}", self.results.display()))
            .args(["--junit-report=junit.xml", "--json-report=report.json"])
            .arg(self.program("e2e.test"))
            .arg("--")
            .arg(format!("--kubeconfig={}", self.kubeconfig().display()))
            .arg(format!("--kubectl-path={}", self.program("kubectl").display()))
            .arg(format!("--num-nodes={}", self.spec.nodes.len()))
            .args(["--provider=skeleton", "--disable-log-dump=true"])
            .env("KUBE_TEST_REPO", REPOSITORY)
            .env("KUBECACHEDIR", self.place.file("kubectl"));
        eprintln!("xtask: tests run; what they say is in {}", log.display());
        // It fails when a test does, which the report says better.
        let ended = exec::timed("tests", || Ok(exec::step(&log, &mut ginkgo)))?;
        if let (Err(error), false) = (ended, report.exists()) {
            bail!("the tests did not run: {error:#}");
        }
        let text = std::fs::read(&report).context("read the report of the tests")?;
        report::read(&text)
    }

    fn kubeconfig(&self) -> PathBuf {
        Credentials::of(self.place.folder()).kubeconfig("admin")
    }

    fn program(&self, name: &str) -> PathBuf {
        kubernetes::folder(self.cache).join(name)
    }
}

/// The names that tests ask for, with our image for each that we have.
fn names(wanted: &str) -> impl Iterator<Item = (&str, &'static str)> {
    wanted.lines().map(str::trim).filter_map(|name| {
        let (_, image) = IMAGES.iter().find(|(part, _)| name.contains(part))?;
        Some((name, *image))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_by_a_part_of_the_name() {
        let wanted = "\
tandem.invalid/e2e:e2e-2-registry-k8s-io-e2e-test-images-agnhost-2-63-0-t_yPbigw
tandem.invalid/e2e:e2e-9-registry-k8s-io-etcd-3-6-0
";
        let found: Vec<_> = names(wanted).collect();
        let agnhost =
            "tandem.invalid/e2e:e2e-2-registry-k8s-io-e2e-test-images-agnhost-2-63-0-t_yPbigw";
        assert_eq!(found, [(agnhost, AGNHOST)]);
    }
}

//! kubectl as administrator of a cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{credentials::Credentials, place::Place, process::eventually};
use crate::exec;

pub(crate) struct Kubectl<'a> {
    place: &'a Place,
    program: PathBuf,
}

impl<'a> Kubectl<'a> {
    pub(crate) fn new(place: &'a Place, programs: &Path) -> Self {
        let program = programs.join("kubectl");
        Self { place, program }
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = self.place.at_control_plane(&self.program);
        let kubeconfig = Credentials::of(self.place.folder()).kubeconfig("admin");
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .env("KUBECACHEDIR", self.place.file("kubectl"));
        command
    }

    /// Another program of the same version.
    pub(crate) fn sibling(&self, name: &str) -> PathBuf {
        self.program.with_file_name(name)
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Result<String> {
        exec::output(self.command().args(arguments))
    }

    /// Creates objects, or brings them up to date.
    pub(crate) fn apply(&self, name: &str, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let file = self.place.file(&format!("{name}.json"));
        fs::write(&file, list.to_string()).with_context(|| format!("write {}", file.display()))?;
        exec::output(self.command().args(["apply", "--filename"]).arg(&file))?;
        Ok(())
    }

    /// Waits until a workload has all its pods ready.
    pub(crate) fn rolled_out(&self, workload: &str, limit: Duration) -> Result<()> {
        eventually(workload, limit, || {
            self.output(&[
                "--namespace=kube-system",
                "rollout",
                "status",
                workload,
                "--timeout=5s",
            ])?;
            Ok(())
        })
    }
}

//! The directory of manifests the agents read, and what is written there:
//! objects as `kubectl get -o yaml` prints them.

mod endpoint;
mod lease;
mod service;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
pub use endpoint::Endpoint;
pub use lease::Lease;
use serde_json::{Value, json};
pub use service::{ECHO_PORT, ECHO_TARGET, Policy, Service};

use crate::{addressing::pod_cidr, family::Family, node::Node};

/// A directory of manifests. Each file replaces its predecessor by rename, so
/// that readers see one change however many objects it holds.
#[derive(Debug)]
pub struct ManifestDir {
    path: PathBuf,
}

impl ManifestDir {
    /// Creates the directory.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| path.display().to_string())?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The directory, as `--manifests` wants it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a Service with its EndpointSlices, one for each family it has.
    pub fn write(&self, service: &Service) -> Result<()> {
        self.write_objects(service.name(), &service.objects())
    }

    /// Deletes what [`ManifestDir::write`] wrote.
    pub fn delete(&self, service: &Service) -> Result<()> {
        let path = self.path.join(format!("{}.yaml", service.name()));
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    /// Writes the Node object of a node.
    pub fn write_node(&self, node: &Node) -> Result<()> {
        self.write_objects(node.name(), &[node_object(node)])
    }

    /// [`ManifestDir::write_node`] of a node that is in a zone.
    pub fn write_node_in_zone(&self, node: &Node, zone: &str) -> Result<()> {
        let mut object = node_object(node);
        object["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
        self.write_objects(node.name(), &[object])
    }

    /// Writes objects into the file `name`.yaml.
    pub fn write_objects(&self, name: &str, objects: &[Value]) -> Result<()> {
        let documents = objects
            .iter()
            .map(serde_saphyr::to_string)
            .collect::<Result<Vec<_>, _>>()?;
        self.write_text(&format!("{name}.yaml"), &documents.join("---\n"))
    }

    /// Writes a file as it is, to see what the agent makes of it.
    pub fn write_text(&self, file: &str, text: &str) -> Result<()> {
        // The name is not one the agent reads, until it is renamed.
        let draft = self.path.join(format!(".{file}.draft"));
        fs::write(&draft, text).with_context(|| draft.display().to_string())?;
        let path = self.path.join(file);
        fs::rename(&draft, &path).with_context(|| path.display().to_string())
    }
}

/// The Node object of a node, with its addresses and its pods' prefixes.
pub(crate) fn node_object(node: &Node) -> Value {
    let addresses = node.addresses().list();
    let pod_cidrs: Vec<_> = addresses
        .iter()
        .map(|&address| pod_cidr(Family::of(address), node.index()))
        .collect();
    let internal = addresses
        .iter()
        .map(|address| json!({ "address": address.to_string(), "type": "InternalIP" }));
    let hostname = json!({ "address": node.name(), "type": "Hostname" });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "labels": { "kubernetes.io/hostname": node.name(), "kubernetes.io/os": "linux" },
            "name": node.name(),
        },
        "spec": { "podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs },
        "status": { "addresses": internal.chain([hostname]).collect::<Vec<_>>() },
    })
}

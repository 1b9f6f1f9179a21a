//! `kubectl`, run on a host of the lab.

use std::{path::PathBuf, sync::Arc};

use anyhow::Result;
use serde_json::Value;

use crate::host::Host;

/// `kubectl` as administrator.
#[derive(Clone, Debug)]
pub struct Kubectl {
    host: Arc<Host>,
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub(super) fn new(host: Arc<Host>, program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self {
            host,
            program,
            kubeconfig,
        }
    }

    /// Returns the words to type, before the arguments, to run it by hand.
    pub fn command_line(&self) -> String {
        format!(
            "ip netns exec {} {} --kubeconfig {}",
            self.host.netns(),
            self.program.display(),
            self.kubeconfig.display()
        )
    }

    /// Runs it with these arguments; `input` is for `-f -`.
    pub fn feed(&self, arguments: &[&str], input: &str) -> Result<String> {
        let kubeconfig = self.kubeconfig.to_string_lossy();
        let arguments = [&["--kubeconfig", &kubeconfig], arguments].concat();
        self.host
            .feed(&self.program.to_string_lossy(), &arguments, input)
    }

    /// Runs it with these arguments.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.feed(arguments, "")
    }

    /// Returns the objects that `get ... -o json` prints.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [&["get", "-o", "json"], arguments].concat();
        Ok(serde_json::from_str(&self.run(&arguments)?)?)
    }

    /// Creates objects, all in one call.
    pub fn create(&self, objects: &[Value]) -> Result<()> {
        self.feed(&["create", "-f", "-"], &list(objects)?).map(drop)
    }

    /// Writes the status of objects that exist.
    pub fn replace_status(&self, objects: &[Value]) -> Result<()> {
        let arguments = ["replace", "--subresource=status", "-f", "-"];
        self.feed(&arguments, &list(objects)?).map(drop)
    }
}

fn list(objects: &[Value]) -> Result<String> {
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    Ok(serde_json::to_string(&list)?)
}

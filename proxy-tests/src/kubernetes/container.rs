//! A Pod's container, as kubelet and runtime would run it: arguments,
//! environment, mounts, capabilities and service account are those of the
//! object, and of the machine's files it sees nothing but what is mounted.
//!
//! The image is the agent alone; as it may be built for development, the
//! machine's shared libraries are there too. There is no seccomp profile.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{chdir, chroot},
};
use serde_json::Value;

use super::ControlPlane;
use crate::{
    agent::{self, Agent},
    capabilities,
    lab::Lab,
    node::Node,
};

/// The image's entry point, and the only program in it.
const PROGRAM: &str = "proxy-agent";
/// The folder of a container's service account.
const ACCOUNT: &str = "var/run/secrets/kubernetes.io/serviceaccount";
/// Folders that shared libraries need, as far as the machine has them.
const LIBRARIES: [&str; 3] = ["usr", "lib", "lib64"];

/// Starts the agent of `pod`, which the API server has given to `node`.
pub fn start_agent<'lab>(
    control_plane: &ControlPlane,
    lab: &'lab Lab,
    node: &'lab Node,
    pod: &Value,
) -> Result<Agent<'lab>> {
    let container = Container::new(control_plane, lab, node, pod)?;
    Agent::start_by(node, lab, || container.enter())
}

/// A container to be started.
struct Container<'lab> {
    node: &'lab Node,
    pod: &'lab Value,
    /// An empty folder of the machine.
    root: PathBuf,
    environment: Vec<(String, String)>,
    /// Names and contents.
    account: [(&'static str, String); 3],
    /// Folders of projected volumes, by the volume's name.
    projected: BTreeMap<String, PathBuf>,
}

impl<'lab> Container<'lab> {
    fn new(
        control_plane: &ControlPlane,
        lab: &Lab,
        node: &'lab Node,
        pod: &'lab Value,
    ) -> Result<Self> {
        let root = lab.scratch.path().join(format!("{}-root", node.name()));
        fs::create_dir(&root)?;
        let kubectl = control_plane.kubectl();
        let namespace = text(&pod["metadata"]["namespace"])?;
        let account = text(&pod["spec"]["serviceAccountName"])?;
        let token = kubectl.run(&["--namespace", namespace, "create", "token", account])?;
        let authority = fs::read_to_string(control_plane.authority())?;
        let mut container = Self {
            node,
            pod,
            root,
            environment: Vec::new(),
            account: [
                ("token", token.trim().to_owned()),
                ("ca.crt", authority),
                ("namespace", namespace.to_owned()),
            ],
            projected: BTreeMap::new(),
        };
        let config_map = |name: &str| kubectl.get(&["--namespace", namespace, "configmap", name]);
        container.environment = container.environment(config_map)?;
        let service = kubectl.get(&["--namespace", "default", "service", "kubernetes"])?;
        container.add_service_variables(&service)?;
        container.project(lab, config_map)?;
        Ok(container)
    }

    /// Adds the variables of the Service `kubernetes`, which each container gets that has
    /// none of these names.
    fn add_service_variables(&mut self, service: &Value) -> Result<()> {
        let ip = text(&service["spec"]["clusterIP"])?;
        let port = &service["spec"]["ports"][0]["port"];
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", ip.to_owned()),
            ("KUBERNETES_SERVICE_PORT", port.to_string()),
            ("KUBERNETES_PORT_443_TCP_ADDR", ip.to_owned()),
        ] {
            if !self.environment.iter().any(|(other, _)| other == name) {
                self.environment.push((name.to_owned(), value));
            }
        }
        Ok(())
    }

    /// Writes the projected volumes, of `ConfigMap`s that may be missing.
    fn project(&mut self, lab: &Lab, config_map: impl Fn(&str) -> Result<Value>) -> Result<()> {
        for volume in list(&self.pod["spec"]["volumes"]) {
            let sources = &volume["projected"]["sources"];
            let name = text(&volume["name"])?;
            if sources.is_null() || name.starts_with("kube-api-access") {
                continue;
            }
            let folder = lab
                .scratch
                .path()
                .join(format!("{}-volume-{name}", self.node.name()));
            fs::create_dir(&folder)?;
            for source in list(sources) {
                let source = &source["configMap"];
                let map = config_map(text(&source["name"])?);
                if map.is_err() && source["optional"] == true {
                    continue;
                }
                for (key, value) in map?["data"].as_object().into_iter().flatten() {
                    fs::write(folder.join(key), text(value)?)?;
                }
            }
            self.projected.insert(name.to_owned(), folder);
        }
        Ok(())
    }

    fn spec(&self) -> &Value {
        &self.pod["spec"]["containers"][0]
    }

    /// `envFrom` and `env`; the latter counts where both have a name.
    fn environment(
        &self,
        config_map: impl Fn(&str) -> Result<Value>,
    ) -> Result<Vec<(String, String)>> {
        let mut environment = Vec::new();
        for source in list(&self.spec()["envFrom"]) {
            let map = config_map(text(&source["configMapRef"]["name"])?)?;
            for (name, value) in map["data"].as_object().into_iter().flatten() {
                environment.push((name.clone(), text(value)?.to_owned()));
            }
        }
        for variable in list(&self.spec()["env"]) {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some(path) => text(self.field(path)),
                None => text(&variable["value"]),
            };
            environment.push((text(&variable["name"])?.to_owned(), value?.to_owned()));
        }
        Ok(environment)
    }

    /// Returns the value that `fieldPath: spec.nodeName` stands for.
    fn field(&self, path: &str) -> &Value {
        path.split('.').fold(self.pod, |value, name| &value[name])
    }

    /// Moves the calling thread into the container and returns what to start.
    fn enter(&self) -> Result<Command> {
        // Mounts of the machine appear inside, none of those inside appear there.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let all = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(None::<&str>, "/", None::<&str>, all, None::<&str>)?;
        let nothing = MsFlags::empty();
        mount(
            Some("tmpfs"),
            &self.root,
            Some("tmpfs"),
            nothing,
            None::<&str>,
        )?;
        self.fill()?;

        let security = &self.spec()["securityContext"];
        if security["readOnlyRootFilesystem"] == true {
            make_read_only(&self.root)?;
        }
        chroot(&self.root)?;
        chdir("/")?;
        ensure!(
            list(&security["capabilities"]["drop"]).eq([&Value::from("ALL")]),
            "not all capabilities are dropped"
        );
        let added = list(&security["capabilities"]["add"]).map(text);
        capabilities::keep(&added.collect::<Result<Vec<_>>>()?)?;
        if security["allowPrivilegeEscalation"] == false {
            capabilities::gain_no_more()?;
        }

        let mut command = Command::new(Path::new("/").join(PROGRAM));
        for argument in list(&self.spec()["args"]) {
            command.arg(text(argument)?);
        }
        command.env_clear().envs(self.environment.iter().cloned());
        Ok(command)
    }

    /// Fills the root with the image, and with what runtime, service account and
    /// volumes add.
    fn fill(&self) -> Result<()> {
        let program = self.root.join(PROGRAM);
        File::create(&program)?;
        bind(&agent::binary()?, &program)?;
        let null = self.root.join("dev/null");
        fs::create_dir(self.root.join("dev"))?;
        File::create(&null)?;
        bind(Path::new("/dev/null"), &null)?;
        self.mount_folder(Path::new("/proc"), "/proc", false)?;
        self.mount_folder(Path::new("/sys"), "/sys", true)?;
        for folder in LIBRARIES {
            let folder = Path::new("/").join(folder);
            if folder.exists() {
                self.mount_folder(&folder, &folder.to_string_lossy(), true)?;
            }
        }
        let account = self.root.join(ACCOUNT);
        fs::create_dir_all(&account)?;
        for (name, contents) in &self.account {
            fs::write(account.join(name), contents)?;
        }
        for wanted in list(&self.spec()["volumeMounts"]) {
            if text(&wanted["name"])?.starts_with("kube-api-access") {
                continue;
            }
            let volume = list(&self.pod["spec"]["volumes"])
                .find(|volume| volume["name"] == wanted["name"])
                .context("no volume of that name")?;
            let from = match self.projected.get(text(&volume["name"])?) {
                Some(folder) => folder.clone(),
                None => self.on_node(text(&volume["hostPath"]["path"])?)?,
            };
            self.mount_folder(
                &from,
                text(&wanted["mountPath"])?,
                wanted["readOnly"] == true,
            )?;
        }
        Ok(())
    }

    /// Returns the path on this machine, which all nodes share, for a path of the node.
    fn on_node(&self, path: &str) -> Result<PathBuf> {
        Ok(match path {
            "/sys/fs/bpf" => {
                let pins = self.node.pins().path();
                fs::create_dir_all(pins)?;
                pins.to_owned()
            }
            "/sys/fs/cgroup" => self.node.cgroup().path().to_owned(),
            "/run/netns" => path.into(),
            "/var/lib/tandem" => {
                let state = self.root.with_extension("state");
                fs::create_dir_all(&state)?;
                state
            }
            _ => bail!("{path} is not known on nodes of the lab"),
        })
    }

    fn mount_folder(&self, from: &Path, inside: &str, read_only: bool) -> Result<()> {
        let to = self.root.join(inside.trim_start_matches('/'));
        fs::create_dir_all(&to).with_context(|| format!("make {inside}"))?;
        bind(from, &to)?;
        if read_only {
            make_read_only(&to)?;
        }
        Ok(())
    }
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("mount {} at {}", from.display(), to.display()))
}

fn make_read_only(mounted: &Path) -> Result<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, mounted, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("make {} read-only", mounted.display()))
}

fn list(value: &Value) -> std::slice::Iter<'_, Value> {
    value
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
}

fn text(value: &Value) -> Result<&str> {
    value
        .as_str()
        .with_context(|| format!("{value} is no text"))
}

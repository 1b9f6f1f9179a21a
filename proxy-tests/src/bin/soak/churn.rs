//! Changes under traffic: Services, endpoints and devices come and go.

use std::{collections::BTreeSet, fmt};

use anyhow::Result;
use proxy_tests::{
    Node,
    kubernetes::{ApiPod, Namespace},
};

/// Services that come and go.
const SERVICES: u64 = 8;
/// Ticks between two backends that come.
const BACKEND_EVERY: u64 = 4;

/// The states of a backend, each for some ticks.
#[derive(Clone, Copy)]
enum Stage {
    Serves,
    /// It has been asked to end, and still serves.
    Ends,
    /// It is removed, and answers clients that do not know it yet: for as long
    /// as the start of an agent may take.
    Lingers,
}

impl Stage {
    fn ticks(self) -> u64 {
        match self {
            Self::Serves => 12,
            Self::Ends => 6,
            Self::Lingers => 20,
        }
    }
}

struct Backend {
    pod: ApiPod,
    stage: Stage,
    until: u64,
}

/// The state of what changes, and how often it did.
pub(crate) struct Churn<'lab> {
    namespace: &'lab Namespace<'lab>,
    services: BTreeSet<u64>,
    backends: Vec<Backend>,
    service_changes: u64,
    backend_changes: u64,
    device_changes: u64,
}

impl<'lab> Churn<'lab> {
    pub(crate) fn new(namespace: &'lab Namespace<'lab>) -> Self {
        Self {
            namespace,
            services: BTreeSet::new(),
            backends: Vec::new(),
            service_changes: 0,
            backend_changes: 0,
            device_changes: 0,
        }
    }

    /// Changes Services and endpoints. Ticks may be left out.
    pub(crate) fn objects(&mut self, tick: u64) -> Result<()> {
        self.change_service(tick % SERVICES)?;
        if tick.is_multiple_of(BACKEND_EVERY) {
            let node = usize::from(tick.is_multiple_of(2 * BACKEND_EVERY));
            let name = format!("b{tick}");
            let [pod] = self.namespace.backends([(node, &name)])?;
            let stage = Stage::Serves;
            let until = tick + stage.ticks();
            self.backends.push(Backend { pod, stage, until });
            self.backend_changes += 1;
        }
        let is_over = |backend: &Backend| tick >= backend.until;
        self.backends
            .retain(|backend| !(is_over(backend) && matches!(backend.stage, Stage::Lingers)));
        for backend in self.backends.iter_mut().filter(|backend| is_over(backend)) {
            backend.stage = match backend.stage {
                Stage::Serves => {
                    backend.pod.terminate()?;
                    Stage::Ends
                }
                Stage::Ends | Stage::Lingers => {
                    backend.pod.remove()?;
                    Stage::Lingers
                }
            };
            backend.until = tick + backend.stage.ticks();
            self.backend_changes += 1;
        }
        Ok(())
    }

    fn change_service(&mut self, number: u64) -> Result<()> {
        let name = format!("churn-{number}");
        if self.services.remove(&number) {
            self.namespace
                .kubectl(&["delete", "service", &name, "--wait=false"])?;
        } else {
            let fields = "ipFamilyPolicy: RequireDualStack, type: NodePort";
            self.namespace.apply_echo(&name, fields)?;
            self.services.insert(number);
        }
        self.service_changes += 1;
        Ok(())
    }

    /// Lets a pair of devices come, or go again.
    pub(crate) fn device(&mut self, node: &Node, tick: u64) -> Result<()> {
        self.device_changes += 1;
        if tick.is_multiple_of(2) {
            node.ip("link del churn0")
        } else {
            node.ip("link add churn0 type veth peer name churn1\nlink set churn0 up")
        }
    }
}

impl fmt::Display for Churn<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} changes of Services, {} of endpoints, {} of devices",
            self.service_changes, self.backend_changes, self.device_changes
        )
    }
}

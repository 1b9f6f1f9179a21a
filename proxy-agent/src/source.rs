//! The sources of objects: the API server, or a directory of manifests.
//!
//! A source runs as one task. It turns API objects into domain objects at once,
//! so that nothing else of them is kept in memory, and sends [`Change`]s into
//! one bounded channel. A source never gives up: while it cannot read, the last
//! state stays in force (S98).

pub(crate) mod kubernetes;
pub mod manifests;

use std::path::PathBuf;

use tokio::sync::mpsc;

use crate::{
    events::Message,
    health::Health,
    metrics::Metrics,
    model::{EndpointSlice, Node, ObjectKey, Parsed, Service, ServiceCidr},
};

/// Changes that take effect together: no sync happens between them.
pub type Batch = Vec<Change>;

/// Batches a source may be ahead of the reconciler.
const CAPACITY: usize = 256;

/// News of one kind of object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Service(Update<Service>),
    EndpointSlice(Update<EndpointSlice>),
    Node(Update<Node>),
    ServiceCidr(Update<ServiceCidr>),
}

/// News of objects of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Update<T> {
    /// All objects there are; any other is gone.
    Relist(Vec<Parsed<T>>),
    /// The present state of one object.
    Apply(Parsed<T>),
    /// One object was deleted.
    Delete(ObjectKey),
    /// Objects that a look at everything did not find any more.
    Missing(Vec<ObjectKey>),
}

impl From<Update<Service>> for Change {
    fn from(update: Update<Service>) -> Self {
        Self::Service(update)
    }
}

impl From<Update<EndpointSlice>> for Change {
    fn from(update: Update<EndpointSlice>) -> Self {
        Self::EndpointSlice(update)
    }
}

impl From<Update<Node>> for Change {
    fn from(update: Update<Node>) -> Self {
        Self::Node(update)
    }
}

impl From<Update<ServiceCidr>> for Change {
    fn from(update: Update<ServiceCidr>) -> Self {
        Self::ServiceCidr(update)
    }
}

/// The source to use.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    Kubernetes(Access),
    Manifests { directory: PathBuf },
}

/// How the API server is reached.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// None to look for the API server on this node.
    pub kubeconfig: Option<PathBuf>,
    /// Whether it is kube-proxy's, which may not be here.
    pub kubeconfig_may_miss: bool,
    /// Addresses instead of the one that the kubeconfig has.
    pub servers: Vec<String>,
    /// Requests in a second.
    pub qps: f32,
    /// Requests at once.
    pub burst: u32,
}

/// An error that keeps a source from starting.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::ConnectError),
    #[error(transparent)]
    Manifests(#[from] manifests::ManifestError),
}

impl Source {
    /// Returns whether Node objects come from it for certain.
    pub fn has_nodes(&self) -> bool {
        matches!(self, Self::Kubernetes(_))
    }

    /// Fails where [`Source::run`] would fail at once.
    pub async fn check(&self, node_name: &str) -> Result<(), SourceError> {
        match self {
            Self::Kubernetes(access) => {
                kubernetes::api_server(access, node_name).await?;
            }
            Self::Manifests { directory } => manifests::check(directory)?,
        }
        Ok(())
    }

    /// Writes events to where the objects come from, for as long as it is polled. Nobody
    /// reads those of manifests.
    pub async fn write_events(self, node_name: &str, events: mpsc::Receiver<Message>) {
        let Self::Kubernetes(access) = self else {
            return;
        };
        if let Ok(server) = kubernetes::api_server(&access, node_name).await {
            kubernetes::events::write(server, node_name, events).await;
        }
    }

    /// Takes a taint off this node's object once Services work here.
    pub async fn remove_taint(self, node_name: &str, key: &str, health: &Health) {
        let Self::Kubernetes(access) = self else {
            return;
        };
        if let Ok(server) = kubernetes::api_server(&access, node_name).await {
            kubernetes::start_taint::remove(server, node_name, key, health).await;
        }
    }

    /// Sends changes for as long as it is polled and someone listens. Fails
    /// only at the start, where the configuration is wrong.
    pub async fn run(
        self,
        node_name: &str,
        changes: mpsc::Sender<Batch>,
        metrics: Metrics,
    ) -> Result<(), SourceError> {
        match self {
            Self::Kubernetes(access) => {
                let server = kubernetes::api_server(&access, node_name).await?;
                kubernetes::run(server, node_name, changes, metrics).await;
            }
            Self::Manifests { directory } => {
                manifests::run(&directory, changes, metrics).await?;
            }
        }
        Ok(())
    }
}

/// The channel from a source to the reconciler.
pub fn channel() -> (mpsc::Sender<Batch>, mpsc::Receiver<Batch>) {
    mpsc::channel(CAPACITY)
}

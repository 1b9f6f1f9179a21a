//! A real Kubernetes control plane beside the lab's nodes: etcd, the API
//! server and the controllers of endpoint slices and daemon sets, from
//! `$KUBEBUILDER_ASSETS`.
//!
//! ```text
//! Cluster ── Lab, agents (each node reaches the API server over one family)
//!  ├─ ControlPlane ── Process (etcd, kube-apiserver, kube-controller-manager)
//!  │   ├─ Credentials (CA, certificates, tokens, kubeconfigs)
//!  │   └─ Kubectl
//!  └─ Namespace (of one test) ── pods whose objects follow the lab's pods
//! ```
//!
//! The control plane lives on a host of its own on the nodes' LAN. There is no
//! kubelet and no scheduler: a test makes a pod in the lab, and the harness
//! the Pod object that says what the kubelet would say about it. What the agent's
//! own Pod object says becomes a process in [`container`].

mod cluster;
pub mod container;
mod control_plane;
mod credentials;
mod kubectl;
mod namespace;
mod objects;
mod probe;
mod process;
mod shared;

pub use cluster::Cluster;
pub use control_plane::{ControlPlane, ServiceRanges};
pub use credentials::{Credentials, User};
pub use kubectl::Kubectl;
pub use namespace::{ApiPod, Namespace, ServiceView};
pub use objects::ContainerPort;
pub use probe::{Probe, Protocol};
pub use process::Process;
pub use shared::shared;

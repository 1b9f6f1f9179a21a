//! The laboratory of Tandem's privileged tests: network namespaces as hosts,
//! real traffic between them, and the agent running on each node.
//!
//! Read from the bottom up to see how a test host comes to be, from the top
//! down to write a test:
//!
//! ```text
//! Lab ── Underlay (switch, routers) ── External clients
//!  ├─ Node ── Agent (proxy-agent run --manifests DIR)
//!  │   ├─ Pod (routed veth, or a port of the bridge cni0)
//!  │   └─ TunnelHost (behind a device without Ethernet header)
//!  └─ ManifestDir (Services and EndpointSlices as kubectl prints them)
//! ```
//!
//! Nodes, pods and external clients are all a [`Host`]: a network namespace
//! whose threads and processes run by [`Host::run`], [`Host::spawn`] and
//! [`Host::exec`]. Traffic lives in [`traffic`]: servers and clients are
//! threads of the test inside the namespace, so nothing is left behind.
//! Everything is removed on drop, also when the test panics.

pub mod addressing;
pub mod agent;
pub mod bench;
pub mod bpffs;
pub mod capabilities;
pub mod cgroup;
pub mod exec;
pub mod family;
pub mod firewall;
pub mod foreign;
pub mod fuzz;
pub mod host;
pub mod interrupt;
pub mod kernel;
pub mod kube_proxy;
pub mod kubernetes;
pub mod lab;
pub mod manifest;
pub mod name;
pub mod netns;
pub mod node;
pub mod packet;
pub mod pod;
pub mod pod_network;
pub mod poll;
pub mod served;
pub mod settings;
pub mod topology;
pub mod traffic;
pub mod tunnel;
pub mod underlay;

pub use agent::{Agent, AgentOptions, Sockets};
pub use family::{Families, Family};
pub use host::Host;
pub use lab::Lab;
pub use manifest::{ECHO_PORT, ECHO_TARGET, Endpoint, ManifestDir, Policy, Service};
pub use node::Node;
pub use pod::Pod;
pub use poll::eventually;
pub use served::Served;
pub use topology::{PodNetwork, Topology, UnderlayKind, Wiring};
pub use tunnel::TunnelHost;

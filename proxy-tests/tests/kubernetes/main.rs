//! Agents against a real kube-apiserver and its controllers.

mod events;
mod families;
mod ipv6_first;
mod manifests;
mod odd_objects;
mod outage;
mod scenarios;
mod service_ranges;
mod single_stack;
mod sockets;
mod start_taint;

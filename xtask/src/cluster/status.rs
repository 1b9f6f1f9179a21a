//! The state of a cluster.

use anyhow::Result;

use super::{kubectl::Kubectl, place::Place, programs, spec::Spec};
use crate::exec;

pub(crate) fn run(place: &Place, kubectl: &Kubectl<'_>) -> Result<()> {
    place.running()?;
    let spec = Spec::read(&place.spec())?;
    println!("{}", summary(&spec));
    println!(
        "folder: {} ({})",
        place.folder().display(),
        programs::size(place.folder())?
    );
    for namespace in place.namespaces() {
        println!("network namespace: {}", namespace.display());
    }
    println!();
    exec::foreground(kubectl.command().args(["get", "nodes", "--output=wide"]))?;
    println!();
    exec::foreground(
        kubectl
            .command()
            .args(["get", "pods", "--all-namespaces", "--output=wide"]),
    )
}

/// A cluster in one line.
pub(crate) fn summary(spec: &Spec) -> String {
    let families = spec
        .families
        .join(|family| format!("ipv{}", family.digit()));
    let proxies: Vec<_> = spec.nodes.iter().map(name).collect();
    format!(
        "{} nodes, {families}, pods by {}, proxies {}",
        spec.nodes.len(),
        name(&spec.cni),
        proxies.join(" ")
    )
}

/// The name of a value on the command line.
pub(crate) fn name(value: &impl clap::ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

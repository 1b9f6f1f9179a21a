//! Network namespaces that have a frontend's address themselves, as clusters within a
//! container do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Family, Lab, Service, Sockets, Topology,
    addressing::public,
    eventually,
    host::Addresses,
    traffic::{Server, Way},
};

const NODE_PORT: u16 = 30_080;
/// From a change of addresses to its effect.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);

/// A namespace has a cluster IP, an external IP and the node's own address on its
/// loopback, and a process of it listens there: calls from within reach that process.
/// While nobody listens there, and from all other namespaces, they reach the Service.
#[test]
fn what_listens_in_the_callers_namespace_is_reached() -> Result<()> {
    let lab = Lab::start(Topology::ONE_NODE)?;
    let node = &lab.nodes[0];
    let [guest, other, backend] = node.add_pods(["guest", "other", "backend"])?;
    let _server = Server::start(&backend, ECHO_TARGET)?;
    let external = Addresses::choose(lab.families(), |family| public(family, 7));
    let service = Service::echo(lab.families())
        .node_port(ECHO_PORT, NODE_PORT)
        .external_ips(external)
        .endpoint(&backend);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::with_sockets(Sockets::All))?;

    let places: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|family| {
            [
                service.at(family, ECHO_PORT),
                (public(family, 7), ECHO_PORT).into(),
                node.at(family, NODE_PORT),
            ]
        })
        .collect();
    let expect = |listens: bool| -> Result<()> {
        for &place in &places {
            let family = Family::of(place.ip());
            for way in Way::ALL.into_iter().filter(|way| way.fits(family)) {
                for host in [&guest, &other] {
                    let expected = if listens && host.name() == guest.name() {
                        &guest
                    } else {
                        &backend
                    };
                    eventually("the server", FOLLOWED_WITHIN, || {
                        let (answer, _) = host.run(|| way.ask(place))?;
                        ensure!(answer.server == expected.name(), "{answer:?}");
                        Ok(())
                    })
                    .with_context(|| format!("{} to {place} {way:?}, {listens}", host.name()))?;
                }
            }
        }
        Ok(())
    };
    expect(false)?;
    for place in &places {
        guest.ip(&format!("addr add {} dev lo", place.ip()))?;
    }
    expect(false)?;
    let server = Server::start_at(&guest, &places)?;
    expect(true)?;
    drop(server);
    expect(false)
}

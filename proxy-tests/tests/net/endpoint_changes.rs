//! Endpoints come and go: what happens to flows that are under way, and to new
//! ones.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Lab, Service, Topology, eventually,
    traffic::{ConnectLoad, Heartbeat, Server, TcpClient, UdpClient, ask_tcp},
};

const SOON: Duration = Duration::from_secs(2);

/// A UDP socket whose backend is gone finds another one by itself (S77). A TCP
/// connection to a removed endpoint lives on (S79).
#[test]
fn flows_of_removed_endpoints() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let client = lab.nodes[0].add_pod("client")?;
    let backends = [lab.nodes[0].add_pod("a")?, lab.nodes[1].add_pod("b")?];
    let all = lab.serve(&backends)?;
    let agents = lab.start_agents(&AgentOptions::default())?;

    for &family in lab.families().list() {
        for gone in &backends {
            let frontend = all.at(family, ECHO_PORT);
            // Flows that have chosen the endpoint about to be removed.
            let socket = eventually("UDP flow", SOON, || {
                let socket = client.run(|| UdpClient::connect(frontend))?;
                ensure!(
                    socket.ask(b"who?")?.server == gone.name(),
                    "the other endpoint"
                );
                Ok(socket)
            })?;
            let mut connection = eventually("TCP flow", SOON, || {
                let connection = client.run(|| TcpClient::to(frontend).connect())?;
                ensure!(
                    connection.answer.server == gone.name(),
                    "the other endpoint"
                );
                Ok(connection)
            })?;
            connection.start_echo()?;
            connection.echo(b"before")?;

            let left = backends.iter().filter(|pod| pod.name() != gone.name());
            lab.manifests
                .write(&all.clone().without_endpoints().endpoints(left))?;
            let heir = eventually("UDP flow moves", SOON, || {
                let server = socket.ask(b"who now?")?.server;
                ensure!(server != gone.name(), "{server} still answers");
                Ok(server)
            })?;
            assert_ne!(heir, gone.name());
            assert_eq!(socket.peer_addr()?, frontend);
            connection.echo(b"after")?;
            for _ in 0..20 {
                assert_eq!(client.run(|| ask_tcp(frontend))?.server, heir);
            }
            connection.echo(b"long after")?;

            lab.manifests.write(&all)?;
            eventually("endpoint is back", SOON, || {
                ensure!(
                    client.run(|| ask_tcp(frontend))?.server == gone.name(),
                    "not chosen"
                );
                Ok(())
            })?;
        }
    }
    drop(agents);
    Ok(())
}

/// A thousand changes of the endpoints, and not one new connection fails as
/// long as the endpoint it finds is alive; nor does one that is open. Another
/// Service notices nothing at all.
#[test]
fn a_thousand_changes_fail_no_connection() -> Result<()> {
    const CHANGES: usize = 1000;
    const BEAT: Duration = Duration::from_millis(5);
    let lab = Lab::start(Topology::default())?;
    let client = lab.nodes[0].add_pod("client")?;
    let backends = lab.nodes[0].add_pods(["a", "b", "c"])?;
    let _servers = Server::start_all(&backends, ECHO_TARGET)?;
    let changing = Service::echo(lab.families()).endpoints(&backends);
    let steady = Service::new("steady", 2, lab.families())
        .udp(ECHO_PORT, ECHO_TARGET)
        .endpoints(&backends);
    lab.manifests.write(&changing)?;
    lab.manifests.write(&steady)?;
    let _agents = lab.start_agents(&AgentOptions::for_many_flows())?;

    let (mut loads, mut beats) = (Vec::new(), Vec::new());
    for &family in lab.families().list() {
        let frontend = changing.at(family, ECHO_PORT);
        loads.push(ConnectLoad::tcp(&client, frontend));
        loads.push(ConnectLoad::udp(&client, frontend));
        beats.push(Heartbeat::tcp(&client, frontend, BEAT)?);
        let unconcerned = steady.at(family, ECHO_PORT);
        beats.push(Heartbeat::udp(&client, unconcerned, BEAT)?);
    }
    for change in 0..CHANGES {
        // All subsets but the empty one, again and again.
        let chosen = (0..backends.len()).filter(|bit| (change % 7 + 1) >> bit & 1 == 1);
        let chosen = chosen.map(|index| &backends[index]);
        let changed = changing.clone().without_endpoints().endpoints(chosen);
        lab.manifests.write(&changed)?;
        thread::sleep(Duration::from_millis(4));
    }
    for load in loads {
        let report = load.stop()?;
        assert!(report.failures.is_empty(), "{report:?}");
        let used_all = report.servers.len() == backends.len();
        assert!(report.answered() > 100 && used_all, "{report:?}");
    }
    for beat in beats {
        let report = beat.stop()?;
        let intact = report.lost.is_empty() && report.failure.is_none();
        assert!(intact && report.servers.len() == 1, "{report:?}");
    }
    Ok(())
}

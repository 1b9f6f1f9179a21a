//! Services come, go and change under traffic: the one that changes does so at
//! once, and no other notices.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use proxy_tests::{
    AgentOptions, ECHO_PORT, ECHO_TARGET, Host, Lab, Pod, Service, Topology, eventually,
    traffic::{Answer, ConnectLoad, Heartbeat, Server, TcpClient, UdpClient, ask_tcp, ask_udp},
};
use serde_json::json;

/// From the change of the manifest to its effect.
const AT_ONCE: Duration = Duration::from_secs(5);
const BEAT: Duration = Duration::from_millis(5);

/// A client, two backends, and a Service with traffic that must not notice.
struct Scene {
    client: Pod,
    backends: [Pod; 2],
    _servers: Vec<Server>,
    bystander: Service,
}

impl Scene {
    fn set(lab: &Lab) -> Result<Self> {
        let node = &lab.nodes[0];
        let client = node.add_pod("client")?;
        let backends = node.add_pods(["a", "b"])?;
        let servers = Server::start_all(&backends, ECHO_TARGET)?;
        let bystander = Service::echo_as("bystander", 9, lab.families()).endpoints(&backends);
        lab.manifests.write(&bystander)?;
        Ok(Self {
            client,
            backends,
            _servers: servers,
            bystander,
        })
    }

    /// Does `change` while the bystander has old and new connections in both
    /// families and protocols, and checks that none of them notices.
    fn undisturbed(&self, lab: &Lab, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let (mut loads, mut beats) = (Vec::new(), Vec::new());
        for &family in lab.families().list() {
            let frontend = self.bystander.at(family, ECHO_PORT);
            loads.push(ConnectLoad::tcp(&self.client, frontend));
            loads.push(ConnectLoad::udp(&self.client, frontend));
            beats.push(Heartbeat::tcp(&self.client, frontend, BEAT)?);
            beats.push(Heartbeat::udp(&self.client, frontend, BEAT)?);
        }
        change()?;
        for load in loads {
            let report = load.stop()?;
            assert!(report.failures.is_empty(), "{report:?}");
            assert!(report.answered() > 10, "{report:?}");
        }
        for beat in beats {
            let report = beat.stop()?;
            let intact = report.lost.is_empty() && report.failure.is_none();
            assert!(intact && report.servers.len() == 1, "{report:?}");
        }
        Ok(())
    }
}

/// A Service is served as soon as it is there. Once deleted, its address is
/// nobody's: new connections fail, and so do UDP conversations, whose client
/// must not go on talking to a Service that is no more. TCP connections that
/// are open live on, as with kube-proxy.
#[test]
fn services_come_and_go() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let scene = Scene::set(&lab)?;
    let service = Service::echo(lab.families()).endpoints(&scene.backends);
    let _agents = lab.start_agents(&AgentOptions::for_many_flows())?;

    scene.undisturbed(&lab, || {
        for round in 0..10 {
            lab.manifests.write(&service)?;
            let mut conversations = Vec::new();
            for &family in lab.families().list() {
                let frontend = service.at(family, ECHO_PORT);
                served(&scene.client, frontend).with_context(|| format!("round {round}"))?;
                let mut connection = scene.client.run(|| TcpClient::to(frontend).connect())?;
                connection.start_echo()?;
                let socket = scene.client.run(|| UdpClient::connect(frontend))?;
                socket.ask(b"before")?;
                conversations.push((frontend, connection, socket));
            }
            lab.manifests.delete(&service)?;
            for (frontend, connection, socket) in &mut conversations {
                gone(&scene.client, *frontend).with_context(|| format!("round {round}"))?;
                socket.set_patience(Duration::from_millis(100))?;
                let late = socket.ask(b"after");
                ensure!(late.is_err(), "{frontend} still answers: {late:?}");
                connection.echo(b"after").context("open connection")?;
            }
        }
        Ok(())
    })
}

/// A port gets another number, another target, another name: each is in force
/// at once, the old number is refused, and connections that are open live on.
#[test]
fn ports_change() -> Result<()> {
    let lab = Lab::start(Topology::default())?;
    let scene = Scene::set(&lab)?;
    let _other = Server::start_all(&scene.backends, 9090)?;
    let base = || Service::new("changing", 1, lab.families()).endpoints(&scene.backends);
    let both = |port, target| base().tcp(port, target).udp(port, target);
    lab.manifests.write(&both(ECHO_PORT, ECHO_TARGET))?;
    let _agents = lab.start_agents(&AgentOptions::for_many_flows())?;

    let mut connections = Vec::new();
    for &family in lab.families().list() {
        let frontend = both(ECHO_PORT, ECHO_TARGET).at(family, ECHO_PORT);
        let mut connection = scene.client.run(|| TcpClient::to(frontend).connect())?;
        connection.start_echo()?;
        connections.push(connection);
    }
    let answers = |port, target| -> Result<()> {
        for &family in lab.families().list() {
            let frontend = both(port, target).at(family, port);
            eventually("the new target", AT_ONCE, || {
                for answer in ask_both(&scene.client, frontend)? {
                    ensure!(answer.local.port() == target, "{answer:?}");
                }
                Ok(())
            })
            .with_context(|| frontend.to_string())?;
        }
        Ok(())
    };
    let refuses = |port| -> Result<()> {
        for &family in lab.families().list() {
            refused(&scene.client, both(port, 1).at(family, port))?;
        }
        Ok(())
    };
    scene.undisturbed(&lab, || {
        for round in 0..10 {
            let context = || format!("round {round}");
            lab.manifests.write(&both(81, ECHO_TARGET))?;
            answers(81, ECHO_TARGET).with_context(context)?;
            refuses(ECHO_PORT).with_context(context)?;
            lab.manifests.write(&both(81, 9090))?;
            answers(81, 9090).with_context(context)?;
            // Another name for the same number.
            let renamed = both(81, 9090)
                .with("/spec/ports/0/name", json!("renamed-tcp"))
                .with("/spec/ports/1/name", json!("renamed-udp"));
            lab.manifests
                .write_objects(renamed.name(), &with_port_names(&renamed))?;
            answers(81, 9090).with_context(context)?;
            // One port more, then only that one.
            lab.manifests.write(
                &both(81, 9090)
                    .tcp(ECHO_PORT, ECHO_TARGET)
                    .udp(ECHO_PORT, ECHO_TARGET),
            )?;
            answers(ECHO_PORT, ECHO_TARGET).with_context(context)?;
            answers(81, 9090).with_context(context)?;
            lab.manifests.write(&both(ECHO_PORT, ECHO_TARGET))?;
            answers(ECHO_PORT, ECHO_TARGET).with_context(context)?;
            refuses(81).with_context(context)?;
            for connection in &mut connections {
                connection.echo(b"still here").with_context(context)?;
            }
        }
        Ok(())
    })
}

/// The objects of a Service whose port names were changed, with slices that
/// follow.
fn with_port_names(service: &Service) -> Vec<serde_json::Value> {
    let mut objects = service.objects();
    let names: Vec<_> = objects[0]["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| port["name"].clone())
        .collect();
    for slice in &mut objects[1..] {
        for (index, name) in names.iter().enumerate() {
            slice["ports"][index]["name"] = name.clone();
        }
    }
    objects
}

/// A Service whose type changes keeps its cluster IPs, except as an
/// `ExternalName` or a headless one, which has none.
#[test]
fn types_change() -> Result<()> {
    let lab = Lab::start(Topology::ROUTED)?;
    let scene = Scene::set(&lab)?;
    let service = Service::echo(lab.families()).endpoints(&scene.backends);
    lab.manifests.write(&service)?;
    let _agents = lab.start_agents(&AgentOptions::for_many_flows())?;

    let typed = |name: &str| service.clone().with("/spec/type", json!(name));
    let external_name = service
        .clone()
        .with("/spec/type", json!("ExternalName"))
        .with("/spec/externalName", json!("example.org"))
        .with("/spec/clusterIP", json!(null))
        .with("/spec/clusterIPs", json!(null))
        .with("/spec/ipFamilies", json!(null));
    let headless = service
        .clone()
        .with("/spec/clusterIP", json!("None"))
        .with("/spec/clusterIPs", json!(["None"]));
    scene.undisturbed(&lab, || {
        for round in 0..5 {
            for kind in ["NodePort", "LoadBalancer", "ClusterIP"] {
                lab.manifests.write(&typed(kind))?;
                for &family in lab.families().list() {
                    // Never interrupted, so it need not be waited for.
                    for _ in 0..20 {
                        ask_both(&scene.client, service.at(family, ECHO_PORT))
                            .with_context(|| format!("round {round}, {kind}"))?;
                    }
                }
            }
            for without in [&external_name, &headless] {
                lab.manifests.write(without)?;
                for &family in lab.families().list() {
                    gone(&scene.client, service.at(family, ECHO_PORT))
                        .with_context(|| format!("round {round}, without cluster IPs"))?;
                }
                lab.manifests.write(&service)?;
                for &family in lab.families().list() {
                    served(&scene.client, service.at(family, ECHO_PORT))
                        .with_context(|| format!("round {round}, back again"))?;
                }
            }
        }
        Ok(())
    })
}

fn ask_both(client: &Host, frontend: SocketAddr) -> Result<[Answer; 2]> {
    client.run(|| {
        Ok([
            ask_tcp(frontend).context("TCP")?,
            ask_udp(frontend, 64).context("UDP")?,
        ])
    })
}

/// The frontend is served at once, and from then on always.
fn served(client: &Host, frontend: SocketAddr) -> Result<()> {
    eventually("service", AT_ONCE, || {
        client.run(|| -> Result<()> {
            let tcp = TcpClient::to(frontend).within(Duration::from_millis(200));
            tcp.connect()?;
            let socket = UdpClient::connect(frontend)?;
            socket.set_patience(Duration::from_millis(200))?;
            socket.ask(b"there?")?;
            Ok(())
        })
    })?;
    for _ in 0..10 {
        ask_both(client, frontend)?;
    }
    Ok(())
}

/// Nobody answers there any more, soon and from then on.
fn gone(client: &Host, frontend: SocketAddr) -> Result<()> {
    let silent = || {
        client.run(|| -> Result<()> {
            let tcp = TcpClient::to(frontend).within(Duration::from_millis(100));
            ensure!(tcp.connect().is_err(), "TCP is answered");
            let socket = UdpClient::connect(frontend)?;
            socket.set_patience(Duration::from_millis(100))?;
            ensure!(socket.ask(b"there?").is_err(), "UDP is answered");
            Ok(())
        })
    };
    eventually("silence", AT_ONCE, silent)?;
    silent()
}

/// Refused soon, in both protocols, and from then on.
fn refused(client: &Host, frontend: SocketAddr) -> Result<()> {
    let refusal = || {
        for (protocol, outcome) in [
            ("TCP", client.run(|| ask_tcp(frontend))),
            ("UDP", client.run(|| ask_udp(frontend, 16))),
        ] {
            match outcome {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                other => bail!("{protocol}: {other:?}"),
            }
        }
        Ok(())
    };
    eventually("refusal", AT_ONCE, refusal)?;
    refusal().with_context(|| frontend.to_string())
}

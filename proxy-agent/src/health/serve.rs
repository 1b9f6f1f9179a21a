//! The servers of the health check ports: one listener for each Service,
//! family and address.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::service::service_fn;
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::sleep,
};
use tracing::{debug, info, warn};

use super::{Checks, Health, answer::answer};
use crate::{
    events::{Event, Recorder},
    http,
    model::{IpFamily, ObjectKey},
    notice::Notices,
};

/// Time between attempts to listen on a port that is taken.
const RETRY: Duration = Duration::from_secs(5);
/// Connections of all ports that are answered at the same time.
const CONNECTIONS: usize = 512;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// The addresses of one family on which health check ports are opened (S113).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// All there are.
    Any,
    Only(BTreeSet<IpAddr>),
}

/// The addresses of both families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Listen,
    pub v6: Listen,
}

impl Default for Addresses {
    /// None, as long as they are not known.
    fn default() -> Self {
        Self {
            v4: Listen::Only(BTreeSet::new()),
            v6: Listen::Only(BTreeSet::new()),
        }
    }
}

impl Addresses {
    /// The addresses to listen on in one family.
    fn of(&self, family: IpFamily) -> BTreeSet<IpAddr> {
        let (listen, any) = match family {
            IpFamily::V4 => (&self.v4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            IpFamily::V6 => (&self.v6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        match listen {
            Listen::Any => BTreeSet::from([any]),
            Listen::Only(ips) => ips.clone(),
        }
    }
}

/// A Service, and where it is asked for.
type Place = (ObjectKey, SocketAddr);

/// The places where somebody should listen.
fn places(checks: &Checks, addresses: &Addresses) -> BTreeSet<Place> {
    checks
        .iter()
        .flat_map(|((service, family), check)| {
            let ips = addresses.of(*family).into_iter();
            ips.map(|ip| (service.clone(), SocketAddr::new(ip, check.port)))
        })
        .collect()
}

/// What the servers answer with, and who is told of ports that are taken.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    pub health: Health,
    /// Name of this node.
    pub node: String,
    pub recorder: Recorder,
}

/// Opens and closes listeners as Services and addresses change, for as long as
/// it is polled.
pub async fn serve(reports: Reports, mut addresses: watch::Receiver<Addresses>) {
    let health = reports.health.clone();
    let mut checks = health.checks();
    let mut servers = Servers::new(reports);
    loop {
        let wanted = places(&checks.borrow_and_update(), &addresses.borrow_and_update());
        servers.close_others(&wanted).await;
        let complete = servers.open(&wanted);
        tokio::select! {
            Ok(()) = checks.changed() => {}
            Ok(()) = addresses.changed() => {}
            () = sleep(RETRY), if !complete => {}
            else => return,
        }
    }
}

/// The listeners there are.
struct Servers {
    reports: Reports,
    connections: Arc<Semaphore>,
    running: BTreeMap<Place, JoinHandle<()>>,
    /// Addresses that cannot be listened on, each with the error.
    failed: Notices<Place, String>,
}

impl Servers {
    fn new(reports: Reports) -> Self {
        Self {
            reports,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            running: BTreeMap::new(),
            failed: Notices::default(),
        }
    }

    /// Closes the listeners that are not wanted. Their ports are free then.
    async fn close_others(&mut self, wanted: &BTreeSet<Place>) {
        self.failed.retain(|place| wanted.contains(place));
        let unwanted = self
            .running
            .extract_if(.., |place, _| !wanted.contains(place));
        for ((service, address), server) in unwanted.collect::<Vec<_>>() {
            server.abort();
            // Cancelled, as asked for.
            let _ = server.await;
            debug!(%service, %address, "health check port closed");
        }
    }

    /// Opens the listeners that are missing. Returns whether all are open.
    fn open(&mut self, wanted: &BTreeSet<Place>) -> bool {
        for place in wanted {
            if self.running.contains_key(place) {
                continue;
            }
            let (service, address) = place;
            match listen(*address) {
                Ok(listener) => {
                    if self.failed.clear(place) {
                        info!(%service, %address, "health check port is open now");
                    }
                    let server = run(
                        listener,
                        service.clone(),
                        self.reports.health.clone(),
                        Arc::clone(&self.connections),
                    );
                    self.running.insert(place.clone(), tokio::spawn(server));
                }
                Err(error) => {
                    let message = error.to_string();
                    // A series for as long as it is taken.
                    self.reports.recorder.record(Event::failed_health_check(
                        &self.reports.node,
                        service,
                        address.port(),
                        &message,
                    ));
                    if self.failed.is_news(place.clone(), message.clone()) {
                        warn!(
                            %service, %address,
                            "cannot listen on the health check port, trying again: {message}"
                        );
                    }
                }
            }
        }
        self.failed.is_empty()
    }
}

/// A listener of the address's own family only.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, Ipv6V6Only, &true)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers whoever asks, until aborted.
async fn run(
    listener: TcpListener,
    service: ObjectKey,
    health: Health,
    connections: Arc<Semaphore>,
) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let id = Arc::new((service, IpFamily::of(address.ip())));
    let respond = service_fn(move |_| {
        let endpoints = health.endpoints(&id);
        let healthy = health.is_healthy();
        let response = answer(&id.0, endpoints, healthy);
        async { Ok::<_, Infallible>(response) }
    });
    http::serve(listener, connections, respond).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::health::Check;

    fn checks(checks: &[(&str, IpFamily, u16)]) -> Checks {
        let checks = checks.iter().map(|(name, family, port)| {
            let id = (ObjectKey::new("shop", *name), *family);
            let check = Check {
                port: *port,
                endpoints: 1,
            };
            (id, check)
        });
        checks.collect()
    }

    fn texts(checks: &Checks, addresses: &Addresses) -> Vec<String> {
        let places = places(checks, addresses);
        let text = |(service, address): &Place| format!("{service} {address}");
        places.iter().map(text).collect()
    }

    /// Health check ports are listened on in each family by itself (S113).
    #[test]
    fn each_family_is_listened_for_on_its_own() {
        let checks = checks(&[
            ("both", IpFamily::V4, 32000),
            ("both", IpFamily::V6, 32000),
            ("one", IpFamily::V6, 32001),
        ]);
        let any = Addresses {
            v4: Listen::Any,
            v6: Listen::Any,
        };
        let expected = [
            "shop/both 0.0.0.0:32000",
            "shop/both [::]:32000",
            "shop/one [::]:32001",
        ];
        assert_eq!(texts(&checks, &any), expected);
        let ips = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().expect("an address"));
        let some = Addresses {
            v4: Listen::Only(ips.into()),
            ..Addresses::default()
        };
        let expected = ["shop/both 192.0.2.1:32000", "shop/both 192.0.2.2:32000"];
        assert_eq!(texts(&checks, &some), expected);
        assert_eq!(texts(&checks, &Addresses::default()), [""; 0]);
    }

    /// A port may go from one Service to another at once, and who has it
    /// already does not keep the others from theirs.
    #[tokio::test]
    async fn listeners_give_way() {
        let address = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let free = listen(address(0)).expect("a free port");
        let address = free.local_addr().expect("its address");
        let place = |name: &str| (ObjectKey::new("shop", name), address);
        let mut servers = Servers::new(Reports::default());
        let (old, new) = (
            BTreeSet::from([place("old")]),
            BTreeSet::from([place("new")]),
        );
        assert!(!servers.open(&old), "another process has it");
        drop(free);
        assert!(servers.open(&old));
        servers.close_others(&new).await;
        assert!(servers.open(&new));
        assert_eq!(servers.running.keys().collect::<Vec<_>>(), [&place("new")]);
    }

    /// More listeners than there may be connections: each answers.
    #[tokio::test]
    async fn listeners_that_nobody_asks_keep_no_connection_from_others() {
        let mut servers = Servers::new(Reports::default());
        servers.connections = Arc::new(Semaphore::new(2));
        for (name, ip) in [
            ("a", IpAddr::V4(Ipv4Addr::LOCALHOST)),
            ("b", IpAddr::V6(Ipv6Addr::LOCALHOST)),
            ("c", IpAddr::V4(Ipv4Addr::LOCALHOST)),
            ("d", IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ] {
            let free = listen(SocketAddr::new(ip, 0)).and_then(|free| free.local_addr());
            let place = (ObjectKey::new("shop", name), free.expect("a free port"));
            assert!(servers.open(&BTreeSet::from([place])));
        }
        for (service, address) in servers.running.keys().rev() {
            let asked = async {
                let mut stream = tokio::net::TcpStream::connect(address).await?;
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await?;
                io::Result::Ok(answer)
            };
            let answer = tokio::time::timeout(http::CONNECTION, asked)
                .await
                .expect("in time");
            let answer = answer.expect("an answer");
            assert!(answer.contains(service.name()), "{answer}");
        }
    }
}

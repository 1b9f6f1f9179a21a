//! A small HTTP server: a connection is for one question.

use std::{
    error::Error,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::{
    Request, Response,
    body::{Body, Incoming},
    server::conn::http1,
    service::Service,
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::notice::Notice;

/// Maximum duration of a connection, whatever its client does.
pub const CONNECTION: Duration = Duration::from_secs(5);

/// An address that is taken is tried again every 5 s (S110).
pub const RETRY: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Listens on an address for what is named, and tries until it can.
pub async fn listen(name: &str, address: SocketAddr) -> TcpListener {
    let mut failure = Notice::default();
    loop {
        match bind(address) {
            Ok(listener) => {
                if failure.clear() {
                    info!(%address, "{name} are served now");
                } else {
                    info!(%address, "{name} are served");
                }
                return listener;
            }
            Err(error) => {
                let message = error.to_string();
                if failure.is_news(message.clone()) {
                    warn!(%address, "cannot listen for {name}, trying again: {message}");
                }
                sleep(RETRY).await;
            }
        }
    }
}

/// Listens on an address. The unspecified address of either family means both (S110), as
/// far as the node has them.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let port = address.port();
    if !address.ip().is_unspecified() {
        return listen_on(address, false);
    }
    match listen_on(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), true) {
        Err(error) if is_without_ipv6(&error) => listen_on(
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            false,
        ),
        result => result,
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
    )
}

fn listen_on(address: SocketAddr, both: bool) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            // Whatever net.ipv6.bindv6only says.
            setsockopt(&socket, Ipv6V6Only, &!both)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers whoever asks, until polled no more. Anybody may connect, and the
/// agent needs file descriptors for other things: so many connections are
/// served at the same time, and of the others each listener accepts one.
pub async fn serve<S, B>(listener: TcpListener, connections: Arc<Semaphore>, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!("cannot accept a connection: {error}");
                // Out of file descriptors, perhaps.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Asked for when there is a connection: those that only listen, which
        // may be more than connections are allowed, must not keep any from
        // others. It is never closed.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let service = service.clone();
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever asks in another way than HTTP gets no answer.
            let _ = timeout(CONNECTION, connection).await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::net::TcpStream;

    use super::*;

    /// The unspecified address of either family serves both (S110).
    #[rstest]
    #[tokio::test]
    async fn the_unspecified_address_is_both_families(
        #[values("0.0.0.0:0", "[::]:0")] address: &str,
    ) {
        let listener = bind(address.parse().expect("an address")).expect("bind");
        let port = listener.local_addr().expect("address").port();
        for host in ["127.0.0.1", "::1"] {
            TcpStream::connect((host, port)).await.expect(host);
        }
    }

    #[rstest]
    #[tokio::test]
    async fn an_address_is_of_its_own_family(#[values("127.0.0.1", "::1")] host: &str) {
        let ip: IpAddr = host.parse().expect("an address");
        let listener = bind(SocketAddr::new(ip, 0)).expect("bind");
        let address = listener.local_addr().expect("address");
        TcpStream::connect(address).await.expect("its own family");
        let other = if host == "::1" { "127.0.0.1" } else { "::1" };
        let other = TcpStream::connect((other, address.port())).await;
        assert!(other.is_err(), "the other family");
    }

    /// A port that one family's listener has is taken for both.
    #[rstest]
    #[tokio::test]
    async fn a_taken_port_is_taken_in_either_family(#[values("0.0.0.0", "::")] taken: IpAddr) {
        let holder = listen_on(SocketAddr::new(taken, 0), false).expect("a port");
        let port = holder.local_addr().expect("address").port();
        let error = bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
        let error = error.expect_err("somebody listens");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    /// A taken port is tried again every 5 s (S110).
    #[tokio::test(start_paused = true)]
    async fn a_taken_port_is_tried_again() {
        let holder = bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let address = holder.local_addr().expect("address");
        let start = tokio::time::Instant::now();
        let waiting = tokio::spawn(listen("tests", address));
        sleep(Duration::from_secs(12)).await;
        assert!(!waiting.is_finished());
        drop(holder);
        waiting.await.expect("a listener");
        assert_eq!(start.elapsed(), Duration::from_secs(15));
    }
}

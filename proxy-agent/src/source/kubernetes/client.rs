//! The client of an API server.
//!
//! The one that the library makes leaves connections alone that lead nowhere any
//! more. A watch only receives, so an API server that lost its power, or a
//! balancer that forgot the connection, would be noticed after minutes, in which
//! nothing of what changes takes effect. Here the kernel asks whether the other
//! end is still there.

use std::{sync::Arc, time::Duration};

use hyper::{Request, Response, body::Incoming};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config, Error,
    client::{Body, ClientBuilder, ConfigExt as _},
};
use tower::{BoxError, Service, ServiceBuilder};

use super::{
    failover::{Failover, Turn},
    limits::Limits,
    measured::Measured,
};

/// A connection that was silent for this long is asked whether it lives …
const ASK_AFTER: Duration = Duration::from_secs(20);
/// … and again in such intervals …
const ASK_EVERY: Duration = Duration::from_secs(5);
/// … until it has not answered for so long. Requests that the other end does
/// not acknowledge have as long.
const DEAD_AFTER: Duration = Duration::from_secs(40);
/// A little longer than the API server lets a watch live: one that is silent
/// for longer is dead, even if its connection is not.
const READ_TIMEOUT: Duration = Duration::from_secs(295);

/// A client as the configuration says. Does not connect yet.
///
/// What fails is not tried again here: a watch does that, and says so. There must be a
/// server; of several, one is asked after the other.
pub(super) fn of(configs: Vec<Config>, limits: &Limits, turn: &Turn) -> Result<Client, Error> {
    let namespace = configs
        .first()
        .map(|config| config.default_namespace.clone());
    let servers = configs.into_iter().map(|config| {
        let url = config.cluster_url.to_string();
        Ok((url, service(config, limits)?))
    });
    let servers = Failover::new(servers.collect::<Result<_, Error>>()?, Arc::clone(turn));
    Ok(ClientBuilder::new(servers, namespace.unwrap_or_default()).build())
}

/// What sends requests to one API server.
fn service(
    config: Config,
    limits: &Limits,
) -> Result<
    impl Service<Request<Body>, Response = Response<Incoming>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + Sync
    + use<>,
    Error,
> {
    if let Some(proxy) = config.proxy_url {
        return Err(Error::ProxyProtocolUnsupported {
            proxy_url: Box::new(proxy),
        });
    }
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_keepalive(Some(ASK_AFTER));
    http.set_keepalive_interval(Some(ASK_EVERY));
    http.set_tcp_user_timeout(Some(DEAD_AFTER));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(http)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(Some(READ_TIMEOUT));
    connector.set_write_timeout(config.write_timeout);
    Ok(ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(limits.clone())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .layer_fn(Measured)
        .service(HttpClient::builder(TokioExecutor::new()).build(connector)))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::fd::{BorrowedFd, RawFd},
    };

    use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, sockopt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::source::kubernetes::{limits::RateLimit, pacing::Chance};

    /// The descriptor of the socket of this process that has an address.
    fn socket_at(address: std::net::SocketAddr) -> Option<RawFd> {
        let names = fs::read_dir("/proc/self/fd").ok()?.flatten();
        let fds = names.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
        let address = SockaddrStorage::from(address);
        let mut fds =
            fds.filter(|fd| getsockname(*fd).is_ok_and(|own: SockaddrStorage| own == address));
        fds.next()
    }

    #[tokio::test]
    async fn connections_are_asked_whether_they_live() {
        for host in ["127.0.0.1", "[::1]"] {
            let listener = TcpListener::bind(format!("{host}:0")).await;
            let listener = listener.expect("a port");
            let url = format!("http://{}", listener.local_addr().expect("its address"));
            let limits = Limits::new(RateLimit::default(), Chance::default());
            let configs = vec![Config::new(url.parse().expect("a URL"))];
            let client = of(configs, &limits, &Turn::default());
            let client = client.expect("a client");
            let request = tokio::spawn(async move { client.apiserver_version().await });
            let (_stream, peer) = listener.accept().await.expect("a connection");
            let socket = socket_at(peer).expect("the client's socket");
            // SAFETY: the request, which waits for its answer, keeps it open.
            let socket = unsafe { BorrowedFd::borrow_raw(socket) };
            assert_eq!(getsockopt(&socket, sockopt::KeepAlive), Ok(true));
            assert_eq!(getsockopt(&socket, sockopt::TcpKeepIdle), Ok(20));
            assert_eq!(getsockopt(&socket, sockopt::TcpKeepInterval), Ok(5));
            assert_eq!(getsockopt(&socket, sockopt::TcpUserTimeout), Ok(40_000));
            request.abort();
        }
    }

    /// When a server cannot be reached, the next request goes to the next one.
    #[tokio::test]
    async fn another_server_is_asked_when_one_is_away() {
        for host in ["127.0.0.1", "[::1]"] {
            let listen = || async {
                TcpListener::bind(format!("{host}:0"))
                    .await
                    .expect("a port")
            };
            let config = |listener: &TcpListener| {
                let url = format!("http://{}", listener.local_addr().expect("its address"));
                Config::new(url.parse().expect("a URL"))
            };
            let (away, here) = (listen().await, listen().await);
            let configs = vec![config(&away), config(&here)];
            drop(away);
            let limits = Limits::new(RateLimit::default(), Chance::default());
            let client = of(configs, &limits, &Turn::default()).expect("a client");
            client
                .apiserver_version()
                .await
                .expect_err("nobody is there");
            let request = tokio::spawn(async move { client.apiserver_version().await });
            here.accept().await.expect("a connection");
            request.abort();
        }
    }
}

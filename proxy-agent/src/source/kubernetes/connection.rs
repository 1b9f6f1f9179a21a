//! The connection to an API server, which is made anew when credentials change.
//!
//! Tokens, certificates and addresses change while the agent runs. Whatever the
//! kubeconfig or the service account says is read again when a connection fails or the
//! API server refuses the credentials, so that what was rotated meanwhile takes effect
//! with the next attempt. A token is also read once a minute.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use hyper::header::{HeaderValue, USER_AGENT};
use kube::{
    Client,
    config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::time::{Duration, Instant};
use tracing::debug;

use super::{
    client,
    limits::{Limits, RateLimit},
    pacing::Chance,
    watch_log::chain,
    watcher::Error,
};

/// The least time between two readings of credentials.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// An error creating a client for the API server. Whether the server can be reached is
/// not checked then.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot read kubeconfig {path}: {reason}")]
    Kubeconfig { path: String, reason: String },
    #[error("no kubeconfig or manifests given, and not in a pod with a service account: {0}")]
    NotInCluster(String),
    #[error("cannot set up the connection to the API server: {0}")]
    Client(String),
}

/// How the API server is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientOptions {
    /// None for the cluster this runs in.
    pub kubeconfig: Option<PathBuf>,
    pub rate: RateLimit,
}

/// An API server, whether or not it can be reached. Clones share the connection.
#[derive(Clone)]
pub struct ApiServer(Arc<Connection>);

struct Connection {
    url: String,
    read: Box<dyn Fn() -> Reading + Send + Sync>,
    limits: Limits,
    current: Mutex<Current>,
}

struct Current {
    client: Client,
    /// When credentials were last read again.
    read_at: Option<Instant>,
}

type Reading = futures::future::BoxFuture<'static, Result<Config, ConnectError>>;

/// The API server that the kubeconfig names, else that of the cluster this runs
/// in. Does not connect yet.
pub async fn api_server(options: &ClientOptions, node: &str) -> Result<ApiServer, ConnectError> {
    let (kubeconfig, agent) = (options.kubeconfig.clone(), user_agent(node));
    let read = move || -> Reading {
        let (kubeconfig, agent) = (kubeconfig.clone(), agent.clone());
        Box::pin(async move {
            let mut config = match kubeconfig {
                Some(path) => read_kubeconfig(&path).await?,
                None => Config::incluster()
                    .map_err(|error| ConnectError::NotInCluster(chain(&error)))?,
            };
            config.headers.push((USER_AGENT, agent));
            Ok(config)
        })
    };
    ApiServer::new(read, options.rate).await
}

impl ApiServer {
    pub(super) async fn new(
        read: impl Fn() -> Reading + Send + Sync + 'static,
        rate: RateLimit,
    ) -> Result<Self, ConnectError> {
        let config = read().await?;
        let url = config.cluster_url.to_string();
        let limits = Limits::new(rate, Chance::default());
        let client = client(config, &limits)?;
        Ok(Self(Arc::new(Connection {
            url,
            read: Box::new(read),
            limits,
            current: Mutex::new(Current {
                client,
                read_at: None,
            }),
        })))
    }

    pub(super) fn url(&self) -> &str {
        &self.0.url
    }

    /// The client to use for the next request.
    pub(super) fn client(&self) -> Client {
        self.current(|current| current.client.clone())
    }

    /// Reads credentials again, if the error may be due to them.
    pub(super) async fn failed(&self, error: &Error) {
        // 401 is the only answer that is due to credentials; without an answer it may be
        // the certificates, or the address.
        if error.status().is_some_and(|status| status.code != 401) {
            return;
        }
        let is_due = self.current(|current| {
            let is_due = current.read_at.is_none_or(|at| at.elapsed() >= READ_AGAIN);
            if is_due {
                current.read_at = Some(Instant::now());
            }
            is_due
        });
        if !is_due {
            return;
        }
        let read = (self.0.read)().await;
        match read.and_then(|config| client(config, &self.0.limits)) {
            Ok(client) => self.current(|current| current.client = client),
            Err(error) => debug!("credentials stay as they were read: {error}"),
        }
    }

    fn current<T>(&self, with: impl FnOnce(&mut Current) -> T) -> T {
        with(
            &mut self
                .0
                .current
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

fn client(config: Config, limits: &Limits) -> Result<Client, ConnectError> {
    client::of(config, limits).map_err(|error| ConnectError::Client(chain(&error)))
}

async fn read_kubeconfig(path: &Path) -> Result<Config, ConnectError> {
    let failed = |error: KubeconfigError| ConnectError::Kubeconfig {
        path: path.display().to_string(),
        reason: match error {
            // Its own message repeats the path.
            KubeconfigError::ReadConfig(error, _) => error.to_string(),
            error => chain(&error),
        },
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(failed)
}

/// Says in the API server's logs and metrics who asks: the version, and from which node.
fn user_agent(node: &str) -> HeaderValue {
    let node: String = node.chars().filter(char::is_ascii_graphic).collect();
    let text = format!(
        "tandem-proxy-agent/{} ({}/{}) node/{node}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
    );
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("tandem-proxy-agent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_agent_names_version_and_node() {
        let expected = format!(
            "tandem-proxy-agent/{} (linux/{}) node/worker-1",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::ARCH,
        );
        assert_eq!(user_agent("worker-1"), expected);
        assert_eq!(user_agent("worker-1\r\n"), expected);
    }
}

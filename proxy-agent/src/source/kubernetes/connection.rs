//! The connection to an API server, which is made anew when credentials change.
//!
//! Tokens, certificates and addresses change while the agent runs. Whatever the
//! kubeconfig or the service account says is read again when a connection fails or the
//! API server refuses the credentials, so that what was rotated meanwhile takes effect
//! with the next attempt. A token is also read once a minute.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::BoxFuture;
use hyper::header::{HeaderValue, USER_AGENT};
use kube::{
    Client,
    config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::time::{Duration, Instant};
use tracing::{debug, info};

use super::{
    client,
    failover::Turn,
    limits::{Limits, RateLimit},
    pacing::Chance,
    servers::{self, Known, is_the_service},
    watch_log::chain,
    watcher::Error,
};
use crate::source::Access;

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
    #[error(
        "no API server is known on this node; --master, --kubeconfig or KUBERNETES_SERVICE_HOST \
         names one"
    )]
    NoServer,
    #[error(
        "{0} is the Service kubernetes, which works only once this agent does; --master, \
         --kubeconfig or KUBERNETES_SERVICE_HOST must name an API server itself, or a load \
         balancer before them"
    )]
    ClusterIp(String),
    #[error("cannot set up the connection to the API server: {0}")]
    Client(String),
}

/// An API server, whether or not it can be reached. Clones share the connection.
#[derive(Clone)]
pub struct ApiServer(Arc<Connection>);

struct Connection {
    url: String,
    read: Box<dyn Fn() -> Reading + Send + Sync>,
    limits: Limits,
    /// Which of several servers is asked.
    turn: Turn,
    current: Mutex<Current>,
}

struct Current {
    client: Client,
    /// When credentials were last read again.
    read_at: Option<Instant>,
}

type Reading = BoxFuture<'static, Result<Vec<Config>, ConnectError>>;

/// The API server that is given, else those that the node knows of. Does not connect yet.
pub async fn api_server(access: &Access, node: &str) -> Result<ApiServer, ConnectError> {
    let rate = RateLimit::of(access.qps, access.burst);
    let (access, agent) = (access.clone(), user_agent(node));
    let read = move || -> Reading {
        let (access, agent) = (access.clone(), agent.clone());
        Box::pin(async move {
            let found = find(&access).await?;
            let servers = found.into_iter().map(|(mut config, from)| {
                debug!(server = %config.cluster_url, "the API server is known by {from}");
                config.headers.push((USER_AGENT, agent.clone()));
                config
            });
            Ok(servers.collect())
        })
    };
    ApiServer::new(read, rate).await
}

impl ApiServer {
    pub(super) async fn new(
        read: impl Fn() -> Reading + Send + Sync + 'static,
        rate: RateLimit,
    ) -> Result<Self, ConnectError> {
        let configs = read().await?;
        let url = configs
            .first()
            .map_or_else(String::new, |config| config.cluster_url.to_string());
        let limits = Limits::new(rate, Chance::default());
        let turn = Turn::default();
        let client = client(configs, &limits, &turn)?;
        Ok(Self(Arc::new(Connection {
            url,
            read: Box::new(read),
            limits,
            turn,
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
        match read.and_then(|configs| client(configs, &self.0.limits, &self.0.turn)) {
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

fn client(configs: Vec<Config>, limits: &Limits, turn: &Turn) -> Result<Client, ConnectError> {
    client::of(configs, limits, turn).map_err(|error| ConnectError::Client(chain(&error)))
}

/// At least one API server, and who says so.
async fn find(access: &Access) -> Result<Vec<(Config, String)>, ConnectError> {
    let given = match &access.kubeconfig {
        Some(path) if access.kubeconfig_may_miss && !path.exists() => {
            info!(
                "{} is not here, looking for the API server elsewhere",
                path.display()
            );
            None
        }
        Some(path) => Some(read_kubeconfig(path).await?),
        None => None,
    };
    let variable = |name: &str| std::env::var(name).ok();
    let cluster_ip = servers::cluster_ip(&variable);
    let refuse = |url: &str| ConnectError::ClusterIp(url.to_owned());
    if !access.servers.is_empty() {
        let base = match given {
            Some(config) => config,
            None => in_cluster()?,
        };
        let at = |url: &String| {
            if is_the_service(url, cluster_ip) {
                Err(refuse(url))
            } else {
                Ok((at(&base, url)?, "--master".to_owned()))
            }
        };
        return access.servers.iter().map(at).collect();
    }
    if let Some(config) = &given
        && !access.kubeconfig_may_miss
    {
        let url = config.cluster_url.to_string();
        return if is_the_service(&url, cluster_ip) {
            Err(refuse(&url))
        } else {
            Ok(vec![(config.clone(), "--kubeconfig".to_owned())])
        };
    }
    let kube_proxy = given.as_ref().map(|config| config.cluster_url.to_string());
    let known = tokio::task::spawn_blocking(move || Known::look(kube_proxy)).await;
    let (candidates, refused) = servers::candidates(&known.unwrap_or_default());
    let account = in_cluster();
    let mut found = Vec::new();
    for candidate in candidates {
        let base = match &given {
            Some(config) if candidate.is_kube_proxys => config,
            _ => match &account {
                Ok(account) => account,
                Err(_) => continue,
            },
        };
        found.push((at(base, &candidate.url)?, candidate.from));
    }
    if !found.is_empty() {
        return Ok(found);
    }
    account?;
    Err(match refused.first() {
        Some(url) => refuse(url),
        None => ConnectError::NoServer,
    })
}

/// The same client of a server at another address.
fn at(config: &Config, url: &str) -> Result<Config, ConnectError> {
    let mut config = config.clone();
    config.cluster_url = url
        .parse()
        .map_err(|error| ConnectError::Client(format!("{url}: {error}")))?;
    Ok(config)
}

/// A client with the pod's service account, of no particular server.
fn in_cluster() -> Result<Config, ConnectError> {
    Config::incluster_dns().map_err(|error| ConnectError::NotInCluster(chain(&error)))
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
    let mut kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    // As kubectl does with a context that has no name.
    if let (None, [context]) = (&kubeconfig.current_context, &kubeconfig.contexts[..]) {
        kubeconfig.current_context = Some(context.name.clone());
    }
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

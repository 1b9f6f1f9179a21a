//! Objects from the API server.
//!
//! Four watches: Services and EndpointSlices without those that are not for
//! this proxy (S1, S17), this node's own Node object, and `ServiceCIDRs`, which
//! API servers before 1.33 do not have. The API server may be away for as long
//! as it likes; the last state then stays in force (S98).

mod client;
pub mod error_log;
pub mod events;
mod failover;
mod measured;
pub mod packet_pods;
mod servers;
pub mod start_taint;
pub mod watch;

use std::path::Path;

use futures::{
    StreamExt,
    stream::{self, LocalBoxStream},
};
use kube::{
    Api, Client,
    config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError},
    runtime::{WatchStreamExt, watcher},
};
use tokio::{sync::mpsc, time::Instant};
use tracing::{debug, info};

use self::{
    error_log::{ErrorLog, chain},
    servers::{Known, is_the_service},
};
use super::{Access, Batch, Change, Update};
use crate::{
    metrics::Metrics,
    model::{
        EndpointSlice, Kind, Node, Object, Service, ServiceCidr, api::ApiObject,
        endpoint_slice::HEADLESS_LABEL, service::PROXY_NAME_LABEL,
    },
};

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

/// An API server, whether or not it can be reached.
#[derive(Clone)]
pub struct ApiServer {
    client: Client,
    url: String,
}

/// The API server that is given, else those that the node knows of. Does not connect yet.
pub async fn api_server(access: &Access) -> Result<ApiServer, ConnectError> {
    let found = find(access).await?;
    let url = found[0].0.cluster_url.to_string();
    if let [_, others @ ..] = &found[..]
        && !others.is_empty()
    {
        let others: Vec<_> = others
            .iter()
            .map(|(config, from)| format!("{} ({from})", config.cluster_url))
            .collect();
        debug!(
            "other API servers, if that cannot be reached: {}",
            others.join(", ")
        );
    }
    debug!(server = url, "the API server is known by {}", found[0].1);
    let configs = found.into_iter().map(|(config, _)| config).collect();
    let client = client::of_several(configs);
    let client = client.map_err(|error| ConnectError::Client(chain(&error)))?;
    Ok(ApiServer { client, url })
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

/// Watches for as long as it is polled and someone listens.
pub async fn run(
    server: ApiServer,
    node_name: &str,
    changes: mpsc::Sender<Batch>,
    metrics: Metrics,
) {
    let services = watcher::Config::default()
        .labels(&format!("!{PROXY_NAME_LABEL}"))
        .fields("spec.clusterIP!=None");
    let slices = watcher::Config::default().labels(&format!("!{HEADLESS_LABEL}"));
    let node = watcher::Config::default().fields(&format!("metadata.name={node_name}"));

    let ApiServer { client, url } = server;
    info!(server = url, "watching the API server");
    let mut all = stream::select_all([
        watch_kind::<Service>(client.clone(), services),
        watch_kind::<EndpointSlice>(client.clone(), slices),
        watch_kind::<Node>(client.clone(), node),
        watch_kind::<ServiceCidr>(client, watcher::Config::default()),
    ]);
    let mut errors = ErrorLog::new(url, metrics);
    while let Some((kind, news)) = all.next().await {
        match news {
            Ok(change) => {
                errors.works(kind);
                if changes.send(vec![change]).await.is_err() {
                    return;
                }
            }
            Err(error) if kind == Kind::ServiceCidr && error_log::is_not_found(&error) => {
                errors.not_served(kind);
                let empty = Update::<ServiceCidr>::Relist(Vec::new());
                if changes.send(vec![empty.into()]).await.is_err() {
                    return;
                }
            }
            Err(error) => errors.failed(kind, &error, Instant::now()),
        }
    }
}

type News = (Kind, Result<Change, watcher::Error>);

/// The news of one kind, in all namespaces.
fn watch_kind<T>(client: Client, config: watcher::Config) -> LocalBoxStream<'static, News>
where
    T: Object + 'static,
    Change: From<Update<T>>,
{
    let events = watcher(Api::<ApiObject<T::Fields>>::all(client), config).default_backoff();
    watch::updates::<T>(events)
        .map(|news| (T::KIND, news.map(Change::from)))
        .boxed_local()
}

#[cfg(test)]
mod tests;

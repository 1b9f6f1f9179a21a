//! Objects from the API server.
//!
//! Four watches: Services and EndpointSlices without those that are not for
//! this proxy (S1, S17), this node's own Node object, and `ServiceCIDRs`, which
//! API servers before 1.33 do not have. The API server may be away for as long
//! as it likes; the last state then stays in force (S98).

mod client;
pub mod error_log;
pub mod events;
mod measured;
pub mod packet_pods;
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
use tracing::info;

use self::error_log::{ErrorLog, chain};
use super::{Batch, Change, Update};
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
    #[error("cannot set up the connection to the API server: {0}")]
    Client(String),
}

/// An API server, whether or not it can be reached.
#[derive(Clone)]
pub struct ApiServer {
    client: Client,
    url: String,
}

/// The API server that the kubeconfig names, else that of the cluster this runs
/// in. Does not connect yet.
pub async fn api_server(kubeconfig: Option<&Path>) -> Result<ApiServer, ConnectError> {
    let config = match kubeconfig {
        Some(path) => read_kubeconfig(path).await?,
        None => Config::incluster().map_err(|error| ConnectError::NotInCluster(chain(&error)))?,
    };
    let url = config.cluster_url.to_string();
    let client = client::of(config).map_err(|error| ConnectError::Client(chain(&error)))?;
    Ok(ApiServer { client, url })
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

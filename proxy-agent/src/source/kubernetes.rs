//! Objects from the API server.
//!
//! Four watches: Services and EndpointSlices without those that are not for
//! this proxy (S1, S17), this node's own Node object, and `ServiceCIDRs`, which
//! API servers before 1.33 do not have. The API server may be away for as long
//! as it likes; the last state then stays in force (S98). A watch that is not
//! permitted keeps none of the others from going on.

mod client;
mod connection;
pub mod events;
mod failover;
mod limits;
mod measured;
mod pacing;
pub mod packet_pods;
mod servers;
pub mod start_taint;
pub mod watch;
mod watch_log;
pub mod watcher;

use futures::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, LocalBoxStream},
};
use kube::{
    Api, Resource,
    api::{ListParams, VersionMatch, WatchParams},
};
use tokio::sync::mpsc;
use tracing::info;

pub use self::connection::{ApiServer, ConnectError, api_server};
use self::{
    pacing::{Chance, Pacing},
    watch::News,
    watch_log::WatchLog,
    watcher::{Error, Event, Events, Listed, Requests},
};
use super::{Batch, Change, Update};
use crate::{
    metrics::Metrics,
    model::{
        EndpointSlice, Kind, Node, Object, Service, ServiceCidr, api::ApiObject,
        endpoint_slice::HEADLESS_LABEL, service::PROXY_NAME_LABEL,
    },
};

const LAST_STATE: &str = "the last state stays in force";

/// The objects of a kind that are watched.
#[derive(Clone, Debug, Default)]
struct Selector {
    labels: Option<String>,
    fields: Option<String>,
}

impl Selector {
    fn labels(mut self, labels: String) -> Self {
        self.labels = Some(labels);
        self
    }

    fn fields(mut self, fields: String) -> Self {
        self.fields = Some(fields);
        self
    }
}

/// Watches for as long as it is polled and someone listens.
pub async fn run(
    server: ApiServer,
    node_name: &str,
    changes: mpsc::Sender<Batch>,
    metrics: Metrics,
) {
    let all = Selector::default();
    let services = all
        .clone()
        .labels(format!("!{PROXY_NAME_LABEL}"))
        .fields("spec.clusterIP!=None".to_owned());
    let slices = all.clone().labels(format!("!{HEADLESS_LABEL}"));
    let node = all.clone().fields(format!("metadata.name={node_name}"));

    info!(server = server.url(), "watching the API server");
    let mut all = stream::select_all([
        changes_of::<Service>(&server, services, &metrics),
        changes_of::<EndpointSlice>(&server, slices, &metrics),
        changes_of::<Node>(&server, node, &metrics),
        changes_of::<ServiceCidr>(&server, all, &metrics),
    ]);
    while let Some(change) = all.next().await {
        if changes.send(vec![change]).await.is_err() {
            return;
        }
    }
}

/// The changes of one kind, in all namespaces. Says what is wrong with the watch.
fn changes_of<T>(
    server: &ApiServer,
    selector: Selector,
    metrics: &Metrics,
) -> LocalBoxStream<'static, Change>
where
    T: Object + 'static,
    Change: From<Update<T>>,
{
    let news = watch::updates::<T>(events::<ApiObject<T::Fields>>(server, selector));
    let mut log = WatchLog::of::<ApiObject<T::Fields>>(server.url(), LAST_STATE, metrics.clone());
    let changes = news.filter_map(move |news| {
        let update = match news {
            Ok(News::Update(update)) => Some(update),
            Ok(News::Recovered) => {
                log.works();
                None
            }
            Err(error) if T::KIND == Kind::ServiceCidr && error.is_absence() => {
                log.not_served();
                Some(Update::Relist(Vec::new()))
            }
            Err(error) => {
                log.failed(&error);
                None
            }
        };
        std::future::ready(update.map(Change::from))
    });
    changes.boxed_local()
}

/// What happens to the objects of one kind, in all namespaces.
fn events<K>(
    server: &ApiServer,
    selector: Selector,
) -> impl Stream<Item = Result<Event<K>, Error>> + use<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned,
{
    let requests = KindRequests::<K> {
        server: server.clone(),
        selector,
        kind: std::marker::PhantomData,
    };
    watcher::events(requests, Pacing::new(Chance::default()))
}

/// The requests for one kind of object.
struct KindRequests<K> {
    server: ApiServer,
    selector: Selector,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K> KindRequests<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned,
{
    fn api(&self) -> Api<K> {
        Api::all(self.server.client())
    }

    async fn begin(
        &self,
        version: &str,
        seconds: u32,
        send_initial_events: bool,
    ) -> kube::Result<Events<K>> {
        let parameters = WatchParams {
            label_selector: self.selector.labels.clone(),
            field_selector: self.selector.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events,
        };
        Ok(self
            .api()
            .watch(&parameters, version)
            .await?
            .into_stream()
            .boxed())
    }
}

impl<K> Requests for KindRequests<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned,
{
    type Object = K;

    async fn list(&mut self, version: &str) -> kube::Result<Listed<K>> {
        let parameters = ListParams {
            label_selector: self.selector.labels.clone(),
            field_selector: self.selector.fields.clone(),
            version_match: Some(VersionMatch::NotOlderThan),
            resource_version: Some(version.to_owned()),
            // With one, what is not older than a version comes from etcd.
            limit: None,
            ..ListParams::default()
        };
        let list = self.api().list(&parameters).await?;
        Ok(Listed {
            objects: list.items,
            version: list
                .metadata
                .resource_version
                .filter(|version| !version.is_empty()),
        })
    }

    async fn stream(&mut self, version: &str, seconds: u32) -> kube::Result<Events<K>> {
        self.begin(version, seconds, true).await
    }

    async fn watch(&mut self, version: &str, seconds: u32) -> kube::Result<Events<K>> {
        self.begin(version, seconds, false).await
    }

    async fn failed(&mut self, error: &Error) {
        self.server.failed(error).await;
    }
}

#[cfg(test)]
mod tests;

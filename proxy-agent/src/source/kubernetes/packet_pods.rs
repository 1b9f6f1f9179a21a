//! Pods that ask for the packet path, by the label [`LABEL`].
//!
//! Only labelled pods of this node are watched, and only their metadata: where
//! no pod has the label this costs one idle connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher, watcher::Event},
};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{ApiServer, error_log::chain};

/// Label of pods whose packets are translated rather than their calls. The
/// value is `off`.
pub const LABEL: &str = "tandem-proxy.github.io/sockets";

/// Follows the labelled pods of a node until polled no more, and tells their
/// uids. A list that cannot be had leaves the last one in force.
pub async fn follow(server: ApiServer, node: &str, uids: watch::Sender<BTreeSet<String>>) {
    let config = watcher::Config::default()
        .labels(&format!("{LABEL}=off"))
        .fields(&format!("spec.nodeName={node}"));
    let api = Api::<PartialObjectMeta<Pod>>::all(server.client);
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut pods = Pods::default();
    let mut failing = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                failing = false;
                if pods.take(event) {
                    uids.send_replace(pods.uids());
                }
            }
            Err(error) if failing => debug!("cannot watch pods: {error}"),
            Err(error) => {
                failing = true;
                warn!(
                    "cannot watch the pods with label {LABEL}, so new ones are not left to the packet path: {}",
                    chain(&error)
                );
            }
        }
    }
}

/// The labelled pods, by what the API calls them.
#[derive(Debug, Default)]
struct Pods {
    known: BTreeMap<(String, String), String>,
    /// Those of a list that is not complete yet.
    list: BTreeMap<(String, String), String>,
}

impl Pods {
    /// Takes in an event. Whether that was news.
    fn take(&mut self, event: Event<PartialObjectMeta<Pod>>) -> bool {
        let key =
            |pod: &PartialObjectMeta<Pod>| (pod.namespace().unwrap_or_default(), pod.name_any());
        match event {
            Event::Init => {
                self.list.clear();
                false
            }
            Event::InitApply(pod) => {
                self.list.extend(pod.uid().map(|uid| (key(&pod), uid)));
                false
            }
            Event::InitDone => {
                self.known = std::mem::take(&mut self.list);
                true
            }
            Event::Apply(pod) => {
                let uid = pod.uid().unwrap_or_default();
                self.known.insert(key(&pod), uid.clone()) != Some(uid)
            }
            Event::Delete(pod) => self.known.remove(&key(&pod)).is_some(),
        }
    }

    fn uids(&self) -> BTreeSet<String> {
        self.known.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use kube::core::ObjectMeta;

    use super::*;

    #[test]
    fn lists_take_effect_when_complete() {
        let pod = |name: &str, uid: &str| PartialObjectMeta::<Pod> {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                uid: Some(uid.to_owned()),
                ..ObjectMeta::default()
            },
            ..PartialObjectMeta::default()
        };
        let mut pods = Pods::default();
        assert!(!pods.take(Event::Init));
        assert!(!pods.take(Event::InitApply(pod("a", "1"))));
        assert!(pods.uids().is_empty());
        assert!(pods.take(Event::InitDone));
        assert!(pods.take(Event::Apply(pod("b", "2"))));
        assert!(!pods.take(Event::Apply(pod("b", "2"))), "no news");
        assert!(pods.take(Event::Apply(pod("b", "3"))), "made anew");
        assert!(pods.take(Event::Delete(pod("a", "1"))));
        assert_eq!(pods.uids(), BTreeSet::from(["3".to_owned()]));
    }
}

//! Pods that ask for the packet path, by the label [`LABEL`].
//!
//! Only labelled pods of this node are watched, and only their metadata: where
//! no pod has the label this costs one idle connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
};

use futures::StreamExt as _;
use tokio::sync::watch;
use tracing::warn;

use super::{ApiServer, Selector, watch_log::WatchLog, watcher::Event};
use crate::{
    metrics::Metrics,
    model::{
        ObjectKey,
        api::{ApiObject, PodFields},
    },
};

/// Label of pods whose packets are translated rather than their calls. The
/// value is `off`.
pub const LABEL: &str = "tandem-proxy.github.io/sockets";

const CONSEQUENCE: &str =
    "new pods with the label tandem-proxy.github.io/sockets=off are not left to the packet path";

/// A pod's metadata.
type Pod = ApiObject<PodFields>;

/// Follows the labelled pods of a node until polled no more, and tells their
/// uids. A list that cannot be had leaves the last one in force.
pub async fn follow(
    server: ApiServer,
    node: &str,
    uids: watch::Sender<BTreeSet<String>>,
    metrics: Metrics,
) {
    let selector = Selector::default()
        .labels(format!("{LABEL}=off"))
        .fields(format!("spec.nodeName={node}"));
    let mut log = WatchLog::of::<Pod>(server.url(), CONSEQUENCE, metrics);
    let mut events = pin!(super::events::<Pod>(&server, selector));
    let mut pods = Pods::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Recovered) => log.works(),
            Ok(event) => {
                if pods.take(event) {
                    uids.send_replace(pods.uids());
                }
            }
            Err(error) => log.failed(&error),
        }
    }
}

/// The labelled pods, by what the API calls them.
#[derive(Debug, Default)]
struct Pods {
    known: BTreeMap<ObjectKey, Box<str>>,
    /// Those of a list that is not complete yet.
    list: BTreeMap<ObjectKey, Box<str>>,
}

impl Pods {
    /// Takes in an event. Returns whether the pods may have changed.
    fn take(&mut self, event: Event<Pod>) -> bool {
        match event {
            Event::Init => {
                self.list.clear();
                false
            }
            Event::Recovered => false,
            Event::InitApply(pod) => {
                if let Some((key, uid)) = identify(pod) {
                    let uid = uid.or_else(|| self.known.get(&key).cloned());
                    self.list.extend(uid.map(|uid| (key, uid)));
                }
                false
            }
            Event::InitDone => {
                self.known = std::mem::take(&mut self.list);
                true
            }
            Event::Apply(pod) => match identify(pod) {
                Some((key, Some(uid))) => self.known.insert(key, uid.clone()) != Some(uid),
                _ => false,
            },
            Event::Delete(pod) => {
                identify(pod).is_some_and(|(key, _)| self.known.remove(&key).is_some())
            }
        }
    }

    fn uids(&self) -> BTreeSet<String> {
        self.known.values().map(ToString::to_string).collect()
    }
}

/// Returns which pod it is, and its uid. A pod that does not say so changes nothing.
fn identify(pod: Pod) -> Option<(ObjectKey, Option<Box<str>>)> {
    let warn = |key: &ObjectKey, malformed| {
        warn!(kind = "Pod", object = %key, "{malformed}; its label {LABEL} is not followed");
    };
    let (key, metadata, _) = pod
        .open(true)
        .map_err(|malformed| warn(&ObjectKey::default(), malformed))
        .ok()?;
    let uid = metadata.uid.required("metadata.uid");
    let uid = uid.map_err(|malformed| warn(&key, malformed)).ok();
    Some((key, uid))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, uid: &Value) -> Pod {
        let metadata = json!({"namespace": "default", "name": name, "uid": uid});
        serde_json::from_value(json!({"metadata": metadata})).expect("any value is a pod")
    }

    #[test]
    fn lists_take_effect_when_complete() {
        let pod = |name: &str, uid: &str| pod(name, &uid.into());
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

    #[test]
    fn a_pod_that_cannot_be_told_changes_nothing() {
        let mut pods = Pods::default();
        pods.take(Event::Apply(pod("a", &"1".into())));
        for broken in [pod("a", &json!(7)), pod("", &"2".into()), Pod::default()] {
            assert!(!pods.take(Event::Apply(broken.clone())));
            pods.take(Event::Init);
            pods.take(Event::InitApply(pod("a", &Value::Null)));
            pods.take(Event::InitApply(broken));
            pods.take(Event::InitDone);
            assert_eq!(pods.uids(), BTreeSet::from(["1".to_owned()]));
        }
        assert!(
            pods.take(Event::Delete(pod("a", &Value::Null))),
            "its name is enough"
        );
        assert!(pods.uids().is_empty());
    }
}

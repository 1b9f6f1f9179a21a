//! Takes a taint off this node once Services work here, which keeps pods away until then.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Error,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{ApiServer, watch_log::chain};
use crate::health::Health;

/// Interval at which the agent's readiness is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Time between two attempts.
const RETRY: Duration = Duration::from_secs(5);
const FORBIDDEN: u16 = 403;

/// Waits until Services work, and removes the taint with this key, whatever its value and
/// effect. Where that is forbidden, says so and gives up.
pub async fn remove(server: ApiServer, node: &str, key: &str, health: &Health) {
    while !health.is_unready().is_empty() {
        sleep(LOOK).await;
    }
    let resource = ApiResource::erase::<Node>(&());
    let nodes = Api::<DynamicObject>::all_with(server.client(), &resource);
    loop {
        match try_to_remove(&nodes, node, key).await {
            Ok(true) => {
                info!(taint = key, "Services work here, the taint is removed");
                return;
            }
            Ok(false) => {
                debug!(taint = key, "the node has no such taint");
                return;
            }
            Err(Error::Api(status)) if status.code == FORBIDDEN => {
                warn!(
                    taint = key,
                    "the taint stays, this agent may not get and patch nodes: {}", status.message
                );
                return;
            }
            Err(error) => debug!("the taint cannot be removed yet: {}", chain(&error)),
        }
        sleep(RETRY).await;
    }
}

async fn try_to_remove(nodes: &Api<DynamicObject>, node: &str, key: &str) -> Result<bool, Error> {
    let object = nodes.get(node).await?;
    let Some(patch) = patch(&object.data, key) else {
        return Ok(false);
    };
    let patch = serde_json::from_value(patch).map_err(Error::SerdeError)?;
    let patch = Patch::<()>::Json(patch);
    nodes.patch(node, &PatchParams::default(), &patch).await?;
    Ok(true)
}

/// The change that removes the taints with a key, which fails if somebody else changes
/// them meanwhile; `None` if there are none.
fn patch(node: &Value, key: &str) -> Option<Value> {
    let taints = node["spec"]["taints"].as_array()?;
    let others: Vec<_> = taints.iter().filter(|taint| taint["key"] != key).collect();
    (others.len() < taints.len()).then(|| {
        json!([
            {"op": "test", "path": "/spec/taints", "value": taints},
            {"op": "replace", "path": "/spec/taints", "value": others},
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_taint_goes() {
        let other = json!({"key": "other", "effect": "NoSchedule"});
        let named = json!({"key": "start", "value": "x", "effect": "NoExecute"});
        let twice = json!({"key": "start", "effect": "NoSchedule"});
        let node = json!({"spec": {"taints": [named, other, twice]}});
        let expected = json!([
            {"op": "test", "path": "/spec/taints", "value": [named, other, twice]},
            {"op": "replace", "path": "/spec/taints", "value": [other]},
        ]);
        assert_eq!(patch(&node, "start"), Some(expected));
        assert_eq!(patch(&node, "else"), None);
        assert_eq!(patch(&json!({"spec": {}}), "start"), None);
    }
}

mod api_server;
mod broken_objects;
mod manners;

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Resource;

use super::*;
use crate::model::api::PodFields;

/// API group and resource.
type Asked = (String, String);

fn watched<R: Resource<DynamicType = ()>>() -> Asked {
    (R::group(&()).into_owned(), R::plural(&()).into_owned())
}

/// The role allows to list and watch what is listed and watched, to write events, and no
/// more (S16, S93).
#[test]
fn the_role_is_what_is_needed() {
    let manifest = include_str!("../../../../manifests/rbac.yaml");
    let role = manifest
        .split("\n---\n")
        .find(|object| object.contains("\nkind: ClusterRole\n"))
        .expect("a role");
    let role: ClusterRole = serde_saphyr::from_str(role).expect("a role");
    let mut allowed = BTreeSet::new();
    for rule in role.rules.unwrap_or_default() {
        if rule.resources.as_deref() == Some(&["events".to_owned()]) {
            assert_eq!(rule.verbs, ["create", "patch"]);
            continue;
        }
        assert_eq!(rule.verbs, ["list", "watch"]);
        for group in rule.api_groups.unwrap_or_default() {
            for resource in rule.resources.iter().flatten() {
                allowed.insert((group.clone(), resource.clone()));
            }
        }
    }
    let needed = BTreeSet::from([
        watched::<ApiObject<<Service as Object>::Fields>>(),
        watched::<ApiObject<<EndpointSlice as Object>::Fields>>(),
        watched::<ApiObject<<Node as Object>::Fields>>(),
        watched::<ApiObject<<ServiceCidr as Object>::Fields>>(),
        watched::<ApiObject<PodFields>>(),
    ]);
    assert_eq!(allowed, needed);
}

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::model::{
    FamilyIps, IpFamily,
    generators::{self, THIS_NODE, service_key},
    node::{NodeAddress, NodeAddressKind},
};

fn service(name: &str, last_octet: u8) -> Service {
    Service {
        key: ObjectKey::new("default", name),
        cluster_ips: FamilyIps {
            v4: Some([10, 96, 0, last_octet].into()),
            v6: None,
        },
        ..Service::default()
    }
}

fn slice(name: &str, service: &str) -> EndpointSlice {
    EndpointSlice {
        key: ObjectKey::new("default", name),
        service: ObjectKey::new("default", service),
        family: IpFamily::V4,
        ports: Vec::new(),
        endpoints: Vec::new(),
    }
}

fn node(name: &str, zone: Option<&str>) -> Node {
    Node {
        key: ObjectKey::new("", name),
        zone: zone.map(str::to_owned),
        pod_cidrs: Vec::new(),
        addresses: Vec::new(),
        leaving: None,
    }
}

/// Names of the dirty Services.
fn dirty(index: &mut Index) -> Vec<String> {
    index
        .take_dirty()
        .into_iter()
        .map(|key| key.name().to_owned())
        .collect()
}

fn slice_names(index: &Index, service: &str) -> Vec<String> {
    let service = ObjectKey::new("default", service);
    index
        .slices(&service)
        .map(|slice| slice.key.name().to_owned())
        .collect()
}

/// An event that changes nothing causes no work (S15).
#[test]
fn equal_objects_change_nothing() {
    let mut index = Index::new(THIS_NODE);
    assert!(index.apply(service("web", 1)));
    assert!(index.apply(slice("web-1", "web")));
    assert_eq!(dirty(&mut index), ["web"]);

    assert!(!index.apply(service("web", 1)));
    assert!(!index.apply(slice("web-1", "web")));
    assert_eq!(index.replace(vec![service("web", 1)]), 0);
    assert_eq!(dirty(&mut index), [""; 0]);

    assert!(index.apply(service("web", 2)));
    assert_eq!(dirty(&mut index), ["web"]);
}

/// S59: the node's addresses concern those with source ranges only.
#[test]
fn node_addresses_matter_to_source_ranges() {
    let mut index = Index::new(THIS_NODE);
    index.apply(service("open", 1));
    index.apply(Service {
        source_ranges: vec!["10.0.0.0/8".parse().expect("a CIDR")],
        ..service("restricted", 2)
    });
    index.take_dirty();
    let mut this = node(THIS_NODE, None);
    this.addresses = vec![NodeAddress {
        kind: NodeAddressKind::Internal,
        ip: [10, 0, 0, 5].into(),
    }];
    index.apply(this.clone());
    assert_eq!(dirty(&mut index), ["restricted"]);
    assert_eq!(index.node_context().ips.v4, Some([10, 0, 0, 5].into()));

    this.zone = Some("zone-a".to_owned());
    index.apply(this.clone());
    assert_eq!(dirty(&mut index), ["open", "restricted"]);
    index.delete::<Node>(&this.key);
    assert_eq!(dirty(&mut index), ["open", "restricted"]);
    assert_eq!(index.node_context().ips, FamilyIps::default());
}

/// S17: slices may come first, and then concern nobody.
#[test]
fn slices_wait_for_their_service() {
    let mut index = Index::new(THIS_NODE);
    index.apply(slice("web-1", "web"));
    assert_eq!(dirty(&mut index), [""; 0]);

    index.apply(service("web", 1));
    assert_eq!(dirty(&mut index), ["web"]);
    assert_eq!(slice_names(&index, "web"), ["web-1"]);
}

/// A slice with another owner label moves to that Service (S26).
#[test]
fn a_relabelled_slice_moves() {
    let mut index = Index::new(THIS_NODE);
    index.apply(service("old", 1));
    index.apply(service("new", 2));
    index.apply(slice("moving", "old"));
    index.take_dirty();

    assert!(index.apply(slice("moving", "new")));
    assert_eq!(dirty(&mut index), ["new", "old"]);
    assert_eq!(slice_names(&index, "old"), [""; 0]);
    assert_eq!(slice_names(&index, "new"), ["moving"]);

    assert!(index.delete::<EndpointSlice>(&ObjectKey::new("default", "moving")));
    assert_eq!(dirty(&mut index), ["new"]);
}

/// Nothing is kept about a Service without slices (S27).
#[test]
fn nothing_is_left_of_slices_that_are_gone() {
    let mut index = Index::new(THIS_NODE);
    index.apply(slice("web-1", "web"));
    index.delete::<EndpointSlice>(&ObjectKey::new("default", "web-1"));
    assert!(index.slices.is_empty() && index.owners.is_empty());
}

/// An object that is known already is no change (S25).
#[test]
fn deleting_the_unknown_is_no_change() {
    let mut index = Index::new(THIS_NODE);
    let key = ObjectKey::new("default", "web");
    assert!(!index.delete::<Service>(&key));
    assert!(!index.delete::<EndpointSlice>(&key));
    assert_eq!(dirty(&mut index), [""; 0]);
}

/// Nothing is programmed until both lists are complete (S85).
#[test]
fn is_complete_once_both_lists_are_in() {
    let mut index = Index::new(THIS_NODE);
    index.apply(service("web", 1));
    index.replace(Vec::<Node>::new());
    assert!(!index.is_complete());
    index.replace(Vec::<EndpointSlice>::new());
    assert!(!index.is_complete());
    index.replace(Vec::<Service>::new());
    assert!(index.is_complete());
}

#[test]
fn a_relist_touches_only_the_differences() {
    let mut index = Index::new(THIS_NODE);
    index.replace(vec![service("a", 1), service("b", 2), service("c", 3)]);
    index.take_dirty();
    assert_eq!(
        index.replace(vec![service("a", 1), service("b", 9), service("d", 4)]),
        3
    );
    assert_eq!(dirty(&mut index), ["b", "c", "d"]);
}

/// Only a change of the node's zone concerns the endpoints (S90).
#[test]
fn only_a_change_of_zone_concerns_all_services() {
    let mut index = Index::new(THIS_NODE);
    index.apply(service("a", 1));
    index.apply(service("b", 2));
    index.take_dirty();

    index.apply(node("another", Some("zone-a")));
    assert_eq!(dirty(&mut index), [""; 0]);
    index.apply(node(THIS_NODE, Some("zone-a")));
    assert_eq!(dirty(&mut index), ["a", "b"]);

    let mut readdressed = node(THIS_NODE, Some("zone-a"));
    readdressed
        .pod_cidrs
        .push("10.1.0.0/24".parse().expect("CIDR"));
    assert!(index.apply(readdressed));
    assert_eq!(dirty(&mut index), [""; 0]);

    assert!(index.delete::<Node>(&ObjectKey::new("", THIS_NODE)));
    assert_eq!(dirty(&mut index), ["a", "b"]);
    assert_eq!(index.node_context().zone, None);
}

/// One thing that can happen to an index.
#[derive(Clone, Debug)]
enum Step {
    Apply(Thing),
    DeleteService(ObjectKey),
    DeleteSlice(ObjectKey),
    ReplaceServices(Vec<Service>),
    ReplaceSlices(Vec<EndpointSlice>),
    TakeDirty,
}

#[derive(Clone, Debug)]
enum Thing {
    Service(Service),
    Slice(EndpointSlice),
    Node(Node),
}

fn step() -> impl Strategy<Value = Step> {
    let thing = prop_oneof![
        generators::service().prop_map(Thing::Service),
        generators::slice().prop_map(Thing::Slice),
        generators::node().prop_map(Thing::Node),
    ];
    let slice_key = generators::slice().prop_map(|slice| slice.key);
    prop_oneof![
        8 => thing.prop_map(Step::Apply),
        2 => service_key().prop_map(Step::DeleteService),
        2 => slice_key.prop_map(Step::DeleteSlice),
        1 => vec(generators::service(), 0..5).prop_map(Step::ReplaceServices),
        1 => vec(generators::slice(), 0..5).prop_map(Step::ReplaceSlices),
        1 => Just(Step::TakeDirty),
    ]
}

/// The plainest possible index: the last word on each object.
#[derive(Default)]
struct Model {
    services: BTreeMap<ObjectKey, Service>,
    slices: BTreeMap<ObjectKey, EndpointSlice>,
    node: Option<Node>,
}

impl Model {
    fn take(&mut self, step: Step) {
        match step {
            Step::Apply(Thing::Service(service)) => {
                self.services.insert(service.key.clone(), service);
            }
            Step::Apply(Thing::Slice(slice)) => {
                self.slices.insert(slice.key.clone(), slice);
            }
            Step::Apply(Thing::Node(node)) if node.key.name() == THIS_NODE => {
                self.node = Some(node);
            }
            Step::Apply(Thing::Node(_)) | Step::TakeDirty => {}
            Step::DeleteService(key) => {
                self.services.remove(&key);
            }
            Step::DeleteSlice(key) => {
                self.slices.remove(&key);
            }
            Step::ReplaceServices(services) => {
                self.services = services.into_iter().map(|s| (s.key.clone(), s)).collect();
            }
            Step::ReplaceSlices(slices) => {
                self.slices = slices.into_iter().map(|s| (s.key.clone(), s)).collect();
            }
        }
    }

    fn index(self) -> Index {
        let mut index = Index::new(THIS_NODE);
        for service in self.services.into_values() {
            index.apply(service);
        }
        for slice in self.slices.into_values() {
            index.apply(slice);
        }
        if let Some(node) = self.node {
            index.apply(node);
        }
        index
    }
}

fn take(index: &mut Index, step: Step) {
    match step {
        Step::Apply(Thing::Service(service)) => drop(index.apply(service)),
        Step::Apply(Thing::Slice(slice)) => drop(index.apply(slice)),
        Step::Apply(Thing::Node(node)) => drop(index.apply(node)),
        Step::DeleteService(key) => drop(index.delete::<Service>(&key)),
        Step::DeleteSlice(key) => drop(index.delete::<EndpointSlice>(&key)),
        Step::ReplaceServices(services) => drop(index.replace(services)),
        Step::ReplaceSlices(slices) => drop(index.replace(slices)),
        Step::TakeDirty => drop(index.take_dirty()),
    }
}

/// Everything a reader can see of one Service.
fn view<'a>(index: &'a Index, key: &ObjectKey) -> Option<(&'a Service, Vec<&'a EndpointSlice>)> {
    let service = index.service(key)?;
    Some((service, index.slices(key).collect()))
}

proptest! {
    /// However the objects came, the index is as if built from them now.
    #[test]
    fn history_leaves_no_trace(steps in vec(step(), 0..40)) {
        let mut index = Index::new(THIS_NODE);
        let mut model = Model::default();
        for step in steps {
            model.take(step.clone());
            take(&mut index, step);
        }
        let fresh = model.index();
        prop_assert_eq!(index.services, fresh.services);
        prop_assert_eq!(index.slices, fresh.slices);
        prop_assert_eq!(index.owners, fresh.owners);
        prop_assert_eq!(index.node, fresh.node);
        prop_assert_eq!(index.context, fresh.context);
    }

    /// No Service changes without becoming dirty.
    #[test]
    fn every_change_is_dirty(
        before in vec(step(), 0..30),
        after in vec(step(), 0..10),
    ) {
        let mut index = Index::new(THIS_NODE);
        let mut model = Model::default();
        for step in before {
            model.take(step.clone());
            take(&mut index, step);
        }
        index.take_dirty();
        let old = model.index();
        for step in after {
            if !matches!(step, Step::TakeDirty) {
                take(&mut index, step);
            }
        }
        let dirty = index.take_dirty();
        let keys = old.services.keys().chain(index.services.keys());
        for key in keys.filter(|key| !dirty.contains(key)) {
            prop_assert_eq!(view(&old, key), view(&index, key));
            prop_assert_eq!(&old.context, &index.context);
        }
    }
}

/// S47: all of them together, once they have been listed.
#[test]
fn service_ranges_are_those_of_all_objects() {
    let object = |name: &str, cidrs: &[&str]| ServiceCidr {
        key: ObjectKey::new("", name),
        cidrs: cidrs
            .iter()
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .collect(),
    };
    let ranges = |index: &Index| {
        let ranges = index.service_ranges()?;
        Some(ranges.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let mut index = Index::new(THIS_NODE);
    assert_eq!(ranges(&index), None);
    let first = object("kubernetes", &["10.96.0.0/16", "fd00:10:96::/112"]);
    assert_eq!(index.replace(vec![first.clone()]), 1);
    assert!(!index.apply(first));
    assert!(index.apply(object("more", &["10.96.0.0/16", "10.97.0.0/16"])));
    let expected = ["10.96.0.0/16", "10.97.0.0/16", "fd00:10:96::/112"];
    assert_eq!(ranges(&index), Some(expected.map(str::to_owned).into()));
    assert!(index.delete::<ServiceCidr>(&ObjectKey::new("", "kubernetes")));
    let expected = ["10.96.0.0/16", "10.97.0.0/16"];
    assert_eq!(ranges(&index), Some(expected.map(str::to_owned).into()));
    assert_eq!(index.replace(Vec::<ServiceCidr>::new()), 1);
    assert_eq!(ranges(&index), Some(Vec::new()));
    assert!(index.take_dirty().is_empty());
}

//! The latest state of all API objects.
//!
//! The index keeps the current domain objects and which Services changed since
//! anyone asked. Each kind has three entry points: [`Index::apply`],
//! [`Index::delete`], and [`Index::replace_except`] for a fresh list of everything.
//! An object equal to the one already there is no change (S15, S25).
//!
//! EndpointSlices are kept one by one below the Service they belong to. An
//! endpoint that moves from one slice to another is never lost in between
//! (S24), and a slice that moves to another Service leaves the first (S26).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{
    model::{EndpointSlice, Kind, Node, Object, ObjectKey, Service, ServiceCidr},
    select::NodeContext,
};

/// The current objects of all kinds.
#[derive(Debug)]
pub struct Index {
    context: NodeContext,
    node: Option<Node>,
    service_cidrs: BTreeMap<ObjectKey, ServiceCidr>,
    services: BTreeMap<ObjectKey, Service>,
    /// Slices by Service, also those whose Service does not exist (yet), in the
    /// order of their keys: they are few.
    slices: BTreeMap<ObjectKey, Vec<EndpointSlice>>,
    /// The Service that each slice is filed under.
    owners: BTreeMap<ObjectKey, ObjectKey>,
    dirty: BTreeSet<ObjectKey>,
    listed: BTreeSet<Kind>,
}

impl Index {
    /// An empty index for the node of that name.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            context: NodeContext::new(node_name),
            node: None,
            service_cidrs: BTreeMap::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            owners: BTreeMap::new(),
            dirty: BTreeSet::new(),
            listed: BTreeSet::new(),
        }
    }

    /// An empty index for the same node.
    pub fn anew(&self) -> Self {
        let mut index = Self::new(self.context.name.clone());
        index.context.external_ips = self.context.external_ips;
        index
    }

    /// Sets whether spec.externalIPs are served (S7): they are, unless told
    /// otherwise before there are any Services.
    pub fn serve_external_ips(&mut self, serve: bool) {
        self.context.external_ips = serve;
    }

    /// Takes in the present state of one object. Returns whether it is another
    /// than before.
    pub fn apply<T: Indexed>(&mut self, object: T) -> bool {
        object.put(self)
    }

    /// Forgets one object. Returns whether it was there.
    pub fn delete<T: Indexed>(&mut self, key: &ObjectKey) -> bool {
        T::remove(self, key)
    }

    /// Takes in all objects of a kind at once and returns how many changed. Those that
    /// are known and not among them are gone, unless they are to stay.
    pub fn replace_except<T: Indexed>(
        &mut self,
        objects: Vec<T>,
        stays: impl Fn(&ObjectKey) -> bool,
    ) -> usize {
        self.listed.insert(T::KIND);
        let present: BTreeSet<_> = objects.iter().map(|object| object.key().clone()).collect();
        let mut changed = 0;
        for key in T::keys(self) {
            if !present.contains(&key) && !stays(&key) {
                changed += usize::from(self.delete::<T>(&key));
            }
        }
        for object in objects {
            changed += usize::from(self.apply(object));
        }
        changed
    }

    /// Returns the objects of a kind that are known and not among these.
    pub fn missing<T: Indexed>(&self, present: &BTreeSet<ObjectKey>) -> Vec<ObjectKey> {
        let keys = T::keys(self).into_iter();
        keys.filter(|key| !present.contains(key)).collect()
    }

    /// Returns the number of objects of a kind.
    pub fn count<T: Indexed>(&self) -> usize {
        match T::KIND {
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.owners.len(),
            Kind::Node => usize::from(self.node.is_some()),
            Kind::ServiceCidr => self.service_cidrs.len(),
        }
    }

    /// Returns the number of Services, known or not, that have slices.
    pub fn services_with_slices(&self) -> usize {
        self.slices.len()
    }

    /// The Service that a slice belongs to, if it is known.
    pub fn owner(&self, slice: &ObjectKey) -> Option<&ObjectKey> {
        self.owners.get(slice)
    }

    /// Takes over what has not been listed since: the Node, and the prefixes of
    /// cluster IPs.
    pub fn inherit(&mut self, old: &Self) {
        if !self.listed.contains(&Kind::Node)
            && let Some(node) = &old.node
        {
            self.apply(node.clone());
        }
        if !self.listed.contains(&Kind::ServiceCidr) && old.listed.contains(&Kind::ServiceCidr) {
            self.replace_except(old.service_cidrs.values().cloned().collect(), |_| false);
        }
    }

    /// Takes in all objects of a kind at once, as [`Index::replace_except`] does.
    #[cfg(test)]
    pub fn replace<T: Indexed>(&mut self, objects: Vec<T>) -> usize {
        self.replace_except(objects, |_| false)
    }

    /// Returns whether Services and EndpointSlices have both been listed. Before that,
    /// nothing may be programmed (S85).
    pub fn is_complete(&self) -> bool {
        self.listed.contains(&Kind::Service) && self.listed.contains(&Kind::EndpointSlice)
    }

    /// The Services that may look different to this node than when this was
    /// last called, those that are gone included.
    pub fn take_dirty(&mut self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.dirty)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key)
    }

    pub fn all_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values().flatten()
    }

    /// The objects with the prefixes that cluster IPs come from; `None` before they have
    /// been listed.
    pub fn service_cidrs(&self) -> Option<Vec<&ServiceCidr>> {
        let listed = self.listed.contains(&Kind::ServiceCidr);
        listed.then(|| self.service_cidrs.values().collect())
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices(&self, service: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flatten()
    }

    /// This node's object, if it has been seen.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The prefixes that cluster IPs come from, each once; `None` before they have been listed.
    pub fn service_ranges(&self) -> Option<BTreeSet<IpNet>> {
        let cidrs = self.service_cidrs.values().flat_map(|object| &object.cidrs);
        let listed = self.listed.contains(&Kind::ServiceCidr);
        listed.then(|| cidrs.copied().collect())
    }

    /// The node's properties that endpoint selection uses.
    pub fn node_context(&self) -> &NodeContext {
        &self.context
    }

    /// Marks a Service as changed, if it exists.
    fn slices_changed(&mut self, service: &ObjectKey) {
        if self.services.contains_key(service) {
            self.dirty.insert(service.clone());
        }
    }

    /// The zone decides about endpoints (S90), the addresses about who may use
    /// a load balancer's address (S59).
    fn node_changed(&mut self) {
        let node = self.node.as_ref();
        let zone = node.and_then(|node| node.zone.clone());
        let ips = node.map(Node::ips).unwrap_or_default();
        let zone_changed = self.context.zone != zone;
        let ips_changed = self.context.ips != ips;
        self.context.zone = zone;
        self.context.ips = ips;
        let concerned = self
            .services
            .values()
            .filter(|service| zone_changed || (ips_changed && !service.source_ranges.is_empty()));
        self.dirty
            .extend(concerned.map(|service| service.key.clone()));
    }
}

/// An object the index keeps.
pub trait Indexed: Object {
    /// Puts the object in its place; says whether that changed anything.
    fn put(self, index: &mut Index) -> bool;

    /// Removes the object; says whether it was there.
    fn remove(index: &mut Index, key: &ObjectKey) -> bool;

    /// The keys of all objects of this kind.
    fn keys(index: &Index) -> Vec<ObjectKey>;
}

impl Indexed for Service {
    fn put(self, index: &mut Index) -> bool {
        if index.services.get(&self.key) == Some(&self) {
            return false;
        }
        index.dirty.insert(self.key.clone());
        index.services.insert(self.key.clone(), self);
        true
    }

    fn remove(index: &mut Index, key: &ObjectKey) -> bool {
        let was_there = index.services.remove(key).is_some();
        if was_there {
            index.dirty.insert(key.clone());
        }
        was_there
    }

    fn keys(index: &Index) -> Vec<ObjectKey> {
        index.services.keys().cloned().collect()
    }
}

impl Indexed for EndpointSlice {
    fn put(self, index: &mut Index) -> bool {
        let owner = index.owners.get(&self.key);
        if owner.is_some_and(|owner| *owner != self.service) {
            Self::remove(index, &self.key.clone());
        }
        let service = self.service.clone();
        let siblings = index.slices.entry(service.clone()).or_default();
        match find(siblings, &self.key) {
            Ok(at) if siblings[at] == self => return false,
            Ok(at) => siblings[at] = self,
            Err(at) => {
                index.owners.insert(self.key.clone(), service.clone());
                // Most Services have one slice of each family: no spare room.
                if siblings.len() < 4 {
                    siblings.reserve_exact(1);
                }
                siblings.insert(at, self);
            }
        }
        index.slices_changed(&service);
        true
    }

    fn remove(index: &mut Index, key: &ObjectKey) -> bool {
        let Some(service) = index.owners.remove(key) else {
            return false;
        };
        if let Some(siblings) = index.slices.get_mut(&service) {
            if let Ok(at) = find(siblings, key) {
                siblings.remove(at);
            }
            // Nothing is kept about a Service without slices (S27).
            if siblings.is_empty() {
                index.slices.remove(&service);
            }
        }
        index.slices_changed(&service);
        true
    }

    fn keys(index: &Index) -> Vec<ObjectKey> {
        index.owners.keys().cloned().collect()
    }
}

/// Returns the position of a slice among those of its Service; as an error, the position
/// to insert it at.
fn find(siblings: &[EndpointSlice], key: &ObjectKey) -> Result<usize, usize> {
    siblings.binary_search_by(|slice| slice.key.cmp(key))
}

/// Of all Nodes, only this node's own is kept.
impl Indexed for Node {
    fn put(self, index: &mut Index) -> bool {
        if self.key.name() != index.context.name || index.node.as_ref() == Some(&self) {
            return false;
        }
        index.node = Some(self);
        index.node_changed();
        true
    }

    fn remove(index: &mut Index, key: &ObjectKey) -> bool {
        let was_there = index.node.take_if(|node| node.key == *key).is_some();
        index.node_changed();
        was_there
    }

    fn keys(index: &Index) -> Vec<ObjectKey> {
        index.node.iter().map(|node| node.key.clone()).collect()
    }
}

impl Indexed for ServiceCidr {
    fn put(self, index: &mut Index) -> bool {
        if index.service_cidrs.get(&self.key) == Some(&self) {
            return false;
        }
        index.service_cidrs.insert(self.key.clone(), self);
        true
    }

    fn remove(index: &mut Index, key: &ObjectKey) -> bool {
        index.service_cidrs.remove(key).is_some()
    }

    fn keys(index: &Index) -> Vec<ObjectKey> {
        index.service_cidrs.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests;

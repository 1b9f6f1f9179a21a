//! The controller over a network and tables in memory.

use std::{io, marker::PhantomData, time::Duration};

use aya::maps::MapError;
use proxy_common::{
    family::{Family, V4, V6},
    local_addr::LocalAddr,
};

use super::*;
use crate::{
    model::{
        ObjectKey,
        node::{NodeAddress, NodeAddressKind},
    },
    node::netlink::fake::FakeNetwork,
};

struct FakeTable<F> {
    entries: Entries,
    broken: bool,
    family: PhantomData<F>,
}

impl<F> Default for FakeTable<F> {
    fn default() -> Self {
        Self {
            entries: Entries::new(),
            broken: false,
            family: PhantomData,
        }
    }
}

impl<F: Family> Table for FakeTable<F> {
    type Family = F;

    fn room(&self) -> usize {
        100
    }

    fn write(&mut self, wanted: &Entries) -> Result<usize, TableError> {
        if self.broken {
            return Err(TableError::Write {
                table: F::NAME.to_owned(),
                source: MapError::IoError(io::ErrorKind::OutOfMemory.into()),
            });
        }
        let of_family = wanted.iter().map(|(prefix, value)| (*prefix, *value));
        let of_family = of_family
            .filter(|(prefix, _)| F::from_ip(prefix.addr()).is_some())
            .collect();
        let changed = self.entries != of_family;
        self.entries = of_family;
        Ok(changed.into())
    }

    fn read_back(&mut self) -> Result<(), TableError> {
        Ok(())
    }
}

type Controller = AddressController<FakeTable<V4>, FakeTable<V6>>;

fn controller(flag: &str) -> Controller {
    let flag = flag.parse().expect("valid");
    AddressController::new(
        FakeTable::default(),
        FakeTable::default(),
        flag,
        watch::Sender::default(),
        Metrics::default(),
    )
}

fn network(local: &str) -> FakeNetwork {
    let words = local.split_whitespace();
    FakeNetwork {
        local: words.map(|net| net.parse().expect("a prefix")).collect(),
        ..FakeNetwork::default()
    }
}

impl Controller {
    /// Returns the entries of the tables as text; `n` marks those that take NodePorts.
    fn tables(&self) -> String {
        let entries = self.v4.entries.iter().chain(&self.v6.entries);
        let texts = entries.map(|(prefix, value)| {
            let takes = value.flags & LocalAddr::NODE_PORTS != 0;
            format!("{prefix}={}", if takes { "n" } else { "" })
        });
        texts.collect::<Vec<_>>().join(" ")
    }
}

/// NodePorts stay reachable where they were while the kernel's list fails (S55).
#[tokio::test]
async fn a_list_that_cannot_be_read_changes_nothing() {
    let mut controller = controller("");
    let mut network = network("192.0.2.1/32 2001:db8::1/128");
    controller.sync(&network, None).await.expect("synced");
    let before = controller.tables();
    assert_eq!(before, "192.0.2.1/32=n 2001:db8::1/128=n");
    network.local.clear();
    network.broken = true;
    controller.sync(&network, None).await.expect_err("no list");
    controller.audit(&network, None).await.expect_err("no list");
    assert_eq!(controller.tables(), before);
    network.broken = false;
    controller.sync(&network, None).await.expect("synced");
    assert_eq!(controller.tables(), "");
}

#[tokio::test]
async fn a_family_that_fails_does_not_hold_up_the_other() {
    let network = network("192.0.2.1/32 2001:db8::1/128");
    let mut v4_fails = controller("");
    v4_fails.v4.broken = true;
    v4_fails.sync(&network, None).await.expect_err("IPv4");
    assert_eq!(v4_fails.tables(), "2001:db8::1/128=n");
    let mut v6_fails = controller("");
    v6_fails.v6.broken = true;
    v6_fails.sync(&network, None).await.expect_err("IPv6");
    assert_eq!(v6_fails.tables(), "192.0.2.1/32=n");
}

/// NodePorts on the primary address wait for the Node object, which has it (S53).
#[tokio::test(start_paused = true)]
async fn the_node_object_is_waited_for_and_then_remembered() {
    let network = network("192.0.2.1/32 192.0.2.2/32 2001:db8::1/128 2001:db8::2/128");
    let mut controller = controller("primary");
    controller.sync(&network, None).await.expect("synced");
    assert_eq!(controller.tables(), "", "what was written before holds");
    let address = |ip: &str| NodeAddress {
        kind: NodeAddressKind::Internal,
        ip: ip.parse().expect("an address"),
    };
    let node = Node {
        addresses: vec![address("192.0.2.2"), address("2001:db8::2")],
        key: ObjectKey::new("", "node"),
        zone: None,
        pod_cidrs: Vec::new(),
        leaving: None,
    };
    let only = "192.0.2.1/32= 192.0.2.2/32=n 2001:db8::1/128= 2001:db8::2/128=n";
    controller
        .sync(&network, Some(&node))
        .await
        .expect("synced");
    assert_eq!(controller.tables(), only);
    tokio::time::advance(NODE_PATIENCE).await;
    controller.sync(&network, None).await.expect("synced");
    assert_eq!(
        controller.tables(),
        only,
        "a Node object that goes opens nothing"
    );
}

/// Without a Node object, all addresses take NodePorts after a while (S53).
#[tokio::test(start_paused = true)]
async fn the_node_object_is_not_waited_for_longer_than_ten_seconds() {
    let network = network("192.0.2.1/32 2001:db8::1/128");
    let mut controller = controller("primary");
    tokio::time::advance(Duration::from_secs(9)).await;
    controller.sync(&network, None).await.expect("synced");
    assert_eq!(controller.tables(), "");
    tokio::time::advance(Duration::from_secs(1)).await;
    controller.sync(&network, None).await.expect("synced");
    assert_eq!(controller.tables(), "192.0.2.1/32=n 2001:db8::1/128=n");
}

#[tokio::test]
async fn an_audit_repairs_what_others_changed() {
    let network = network("192.0.2.1/32 2001:db8::1/128");
    let mut controller = controller("");
    controller.sync(&network, None).await.expect("synced");
    let before = controller.tables();
    controller.v4.entries.clear();
    controller.v6.entries.clear();
    controller.audit(&network, None).await.expect("audited");
    assert_eq!(controller.tables(), before);
}

//! The controller over devices and tables in memory.

use proxy_common::device::Device;
use rstest::rstest;

use super::{
    DeviceController, Link,
    desired::desired,
    fake::{FakeHooks, FakeTables},
    fixtures::{addresses, inputs, link, node},
};

/// A controller of a kernel in memory.
struct Scene {
    hooks: FakeHooks,
    controller: DeviceController<FakeTables>,
}

impl Scene {
    fn with_room(room: usize) -> Self {
        let tables = FakeTables {
            room,
            devices: [].into(),
        };
        Self {
            hooks: FakeHooks::default(),
            controller: DeviceController::new(tables),
        }
    }

    async fn sync(&mut self, links: &[Link]) {
        let desired = desired(links, &addresses(), &inputs());
        let applied = self.controller.apply(links, desired, &mut self.hooks);
        applied.await.expect("applied");
    }

    /// Devices with programs.
    fn served(&self) -> Vec<u32> {
        self.hooks.served.keys().copied().collect()
    }

    /// Devices with a row, and whether it says that they are covered.
    fn rows(&self) -> Vec<(u32, bool)> {
        let rows = self.controller.tables.devices.iter();
        rows.map(|(ifindex, device)| (*ifindex, device.flags & Device::COVERED != 0))
            .collect()
    }
}

#[tokio::test]
async fn devices_get_programs_and_rows_and_lose_them() {
    let mut scene = Scene::with_room(8);
    let mut links = node();
    scene.sync(&links).await;
    assert_eq!(scene.served(), [2, 4, 5]);
    assert_eq!(scene.rows(), [(2, true), (3, true), (4, true), (5, true)]);
    assert_eq!(scene.controller.due(), None, "nothing to be tried again");
    links.retain(|link| link.ifindex != 5);
    scene.sync(&links).await;
    assert_eq!(scene.served(), [2, 4]);
    assert_eq!(scene.rows(), [(2, true), (3, true), (4, true)]);
}

/// Pods' devices do so all the time.
#[tokio::test]
async fn a_device_that_went_after_it_was_listed_leaves_nothing() {
    let mut scene = Scene::with_room(8);
    let mut links = node();
    scene.hooks.gone.insert(5);
    scene.sync(&links).await;
    assert_eq!(scene.served(), [2, 4]);
    assert_eq!(scene.rows(), [(2, true), (3, true), (4, true), (5, false)]);
    assert!(scene.controller.due().is_some(), "it may be a mistake");
    links.retain(|link| link.ifindex != 5);
    scene.sync(&links).await;
    assert_eq!(scene.rows(), [(2, true), (3, true), (4, true)]);
    assert!(!scene.controller.is_refused(5) && scene.controller.due().is_none());
}

#[tokio::test]
async fn a_device_that_refuses_its_programs_is_tried_again() {
    let mut scene = Scene::with_room(8);
    scene.hooks.taken.insert(2);
    scene.sync(&node()).await;
    assert_eq!(scene.served(), [4, 5], "others are served");
    assert_eq!(scene.rows()[0], (2, false), "known, but not covered");
    assert!(scene.controller.is_refused(2) && scene.controller.due().is_some());
    scene.hooks.taken.clear();
    scene.sync(&node()).await;
    assert_eq!(scene.served(), [2, 4, 5]);
    assert_eq!(scene.rows()[0], (2, true));
    assert!(!scene.controller.is_refused(2) && scene.controller.due().is_none());
}

/// Rows stay with those that have them; of others the first ones get what is
/// free, and bridges come last.
#[tokio::test]
async fn a_full_table_serves_the_first_devices() {
    let mut scene = Scene::with_room(2);
    let mut links = node();
    links.remove(1);
    scene.sync(&links).await;
    assert_eq!(scene.rows(), [(4, true), (5, true)]);
    links.push(link(2, "eth0"));
    scene.sync(&links).await;
    assert_eq!(scene.served(), [4, 5], "no program without a row");
    assert_eq!(scene.rows(), [(4, true), (5, true)]);
    assert!(scene.controller.is_refused(2) && scene.controller.is_refused(3));
    links.retain(|link| link.ifindex != 5);
    scene.sync(&links).await;
    assert_eq!(scene.rows(), [(2, true), (4, true)]);
    assert!(!scene.controller.is_refused(2) && scene.controller.is_refused(3));
}

/// Routes lead to bridges: replies pass programs only if no port lacks them.
#[tokio::test]
async fn a_bridge_is_covered_only_by_all_of_its_ports() {
    let mut scene = Scene::with_room(8);
    let mut links = node();
    let port = Link {
        master: Some(3),
        ..link(8, "veth2")
    };
    links.push(port);
    scene.hooks.taken.insert(8);
    scene.sync(&links).await;
    assert_eq!(scene.rows()[1], (3, false));
    scene.hooks.taken.clear();
    scene.sync(&links).await;
    assert_eq!(scene.rows()[1], (3, true));
    links.retain(|link| link.ifindex != 3);
    for link in &mut links {
        link.master = None;
    }
    scene.sync(&links).await;
    let bridge = scene.rows().into_iter().find(|(ifindex, _)| *ifindex == 3);
    assert_eq!(bridge, None);
}

#[tokio::test]
async fn programs_that_were_taken_off_come_back() {
    let mut scene = Scene::with_room(8);
    scene.sync(&node()).await;
    scene.hooks.served.clear();
    scene.controller.audit(&mut scene.hooks).await;
    assert_eq!(scene.served(), [2, 4, 5]);
    scene.hooks.served.clear();
    scene.hooks.taken.insert(4);
    scene.controller.audit(&mut scene.hooks).await;
    assert_eq!(scene.served(), [2, 5]);
    assert!(scene.rows().contains(&(4, false)), "{:?}", scene.rows());
}

#[tokio::test]
async fn what_an_earlier_agent_left_is_taken_over_or_removed() {
    let mut scene = Scene::with_room(8);
    scene.hooks.pinned.extend([2, 9]);
    let covered = Device {
        flags: Device::COVERED,
        ..Device::default()
    };
    let rows = [2, 10].map(|ifindex| (ifindex, covered));
    scene.controller.tables.devices.extend(rows);
    let links = node();
    let forgotten = scene.controller.forget_gone(&links, &mut scene.hooks);
    forgotten.await.expect("forgotten");
    assert_eq!(scene.rows(), [(2, true)]);
    assert!(scene.hooks.pinned.contains(&2) && scene.hooks.pinned.len() == 1);
    scene.hooks.taken.insert(2);
    scene.sync(&node()).await;
    assert_eq!(
        scene.rows()[0],
        (2, true),
        "its programs may still be there"
    );
    scene.controller.forget_all(&mut scene.hooks).await;
    assert!(scene.hooks.pinned.is_empty());
}

/// A device may go and another one come with its ifindex between two lists; its
/// name may be the same, too.
#[rstest]
#[case::of_another_name("veth9")]
#[case::of_the_same_name("veth1")]
#[tokio::test]
async fn a_device_with_the_ifindex_of_another_gets_programs_of_its_own(#[case] name: &str) {
    let mut scene = Scene::with_room(8);
    let mut links = node();
    scene.sync(&links).await;
    scene.hooks.served.remove(&4);
    links[3].name = name.to_owned();
    links[3].mac = [2, 0, 0, 0, 9, 9];
    scene.hooks.taken.insert(4);
    scene.sync(&links).await;
    assert!(scene.rows().contains(&(4, false)), "{:?}", scene.rows());
    assert_eq!(scene.rows()[1], (3, false), "nor is its bridge covered");
    scene.hooks.taken.clear();
    scene.sync(&links).await;
    assert_eq!(scene.hooks.served[&4], name);
    assert_eq!(scene.rows()[2], (4, true));
}

#[tokio::test]
async fn a_device_that_is_renamed_keeps_its_programs() {
    let mut scene = Scene::with_room(8);
    let mut links = node();
    scene.sync(&links).await;
    links[3].name = "renamed".to_owned();
    scene.sync(&links).await;
    assert_eq!(scene.served(), [2, 4, 5]);
    assert_eq!(scene.rows()[2], (4, true));
}

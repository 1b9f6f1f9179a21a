//! Follows the node's network: waits for changes, and decides what to read again.

use tokio::time::{Duration, Instant, sleep};
use tracing::{debug, warn};

use super::{
    attempts::RETRY,
    devices::{Address, Link, Routes},
    netlink::{Event, NetlinkError, Network},
    routes::MainRoutes,
};

/// Time to collect changes of devices before they are looked at. A device that comes up
/// changes several times at once.
const SETTLE: Duration = Duration::from_millis(5);

/// A node's network, and the main routing table as last read.
pub(super) struct Watch<N> {
    network: N,
    routes: MainRoutes,
}

impl<N: Network> Watch<N> {
    pub(super) fn new(network: N) -> Self {
        Self {
            network,
            routes: MainRoutes::new(),
        }
    }

    pub(super) fn network(&self) -> &N {
        &self.network
    }

    /// All devices as they are now.
    pub(super) async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.network.links().await
    }

    /// All addresses as they are now.
    pub(super) async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        self.network.addresses().await
    }

    /// The main routing table's routes as last read.
    pub(super) fn routes(&self) -> &Routes {
        self.routes.known()
    }

    /// Reads the routes again if they changed and it is time to.
    pub(super) async fn refresh_routes(&mut self) -> Result<(), NetlinkError> {
        self.routes.refresh(&self.network).await
    }

    /// The time to read the routes again, if that is needed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.routes.due()
    }

    /// Waits for something to happen.
    pub(super) async fn changed(&mut self) -> Event {
        self.network.changed().await
    }

    /// Takes in what happened; returns whether to look at all devices and
    /// addresses now. A connection that was lost is opened anew before: what
    /// changed meanwhile is in the lists.
    pub(super) async fn take(&mut self, event: Event) -> bool {
        self.routes.touch();
        match event {
            // Read when it is time to.
            Event::Routes => false,
            Event::Devices => {
                sleep(SETTLE).await;
                true
            }
            Event::Lost => {
                self.reconnect().await;
                true
            }
        }
    }

    async fn reconnect(&mut self) {
        warn!("netlink connection lost, opening another");
        while let Err(error) = self.network.reopen() {
            debug!("cannot open netlink: {:#}", anyhow::Error::new(error));
            sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{
        devices::{
            DeviceController, desired,
            fake::{FakeHooks, FakeTables},
            fixtures::{inputs, node},
        },
        netlink::fake::FakeNetwork,
    };

    async fn sync(
        watch: &Watch<FakeNetwork>,
        hooks: &mut FakeHooks,
        controller: &mut DeviceController<FakeTables>,
    ) {
        let links = watch.links().await.expect("devices");
        let desired = desired(
            &links,
            &watch.addresses().await.expect("addresses"),
            &inputs(),
        );
        let applied = controller.apply(&links, desired, hooks).await;
        applied.expect("applied");
    }

    /// Whatever happened while nobody listened.
    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_leads_to_a_look_at_everything() {
        let mut network = FakeNetwork {
            refusals: 2,
            events: [Event::Lost].into(),
            ..FakeNetwork::default()
        };
        network.links = node();
        network.links.remove(1);
        let mut watch = Watch::new(network);
        let mut hooks = FakeHooks::default();
        let mut controller = DeviceController::new(FakeTables {
            room: 8,
            devices: [].into(),
        });
        watch.refresh_routes().await.expect("routes");
        sync(&watch, &mut hooks, &mut controller).await;
        assert_eq!(watch.due(), None);
        watch.network.links = node();
        watch.network.links.retain(|link| link.ifindex != 5);
        watch.network.routes.gateways.insert(2);

        let event = watch.changed().await;
        assert!(watch.take(event).await, "everything is to be looked at");
        assert_eq!(watch.network.opened, 1);
        assert!(watch.due().is_some_and(|due| due <= Instant::now()));
        watch.refresh_routes().await.expect("routes");
        assert!(watch.routes().gateways.contains(&2));
        sync(&watch, &mut hooks, &mut controller).await;
        let served: Vec<_> = hooks.served.keys().copied().collect();
        assert_eq!(served, [2, 4], "one came, one went");
    }

    /// A router's change all the time.
    #[tokio::test(start_paused = true)]
    async fn routes_are_read_once_a_second() {
        let mut watch = Watch::new(FakeNetwork::default());
        watch.refresh_routes().await.expect("routes");
        assert!(!watch.take(Event::Routes).await);
        watch.network.routes.gateways.insert(2);
        watch.refresh_routes().await.expect("routes");
        assert!(watch.routes().gateways.is_empty(), "too early");
        tokio::time::advance(Duration::from_secs(1)).await;
        watch.network.broken = true;
        watch.refresh_routes().await.expect_err("a broken list");
        assert!(watch.due().is_some(), "to be tried again");
        watch.network.broken = false;
        tokio::time::advance(Duration::from_secs(1)).await;
        watch.refresh_routes().await.expect("routes");
        assert!(watch.routes().gateways.contains(&2) && watch.due().is_none());
    }
}

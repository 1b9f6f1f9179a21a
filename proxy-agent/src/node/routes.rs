//! The main routing table, which is long and always changing on a router.

use tokio::time::{Duration, Instant};

use super::{
    devices::Routes,
    netlink::{NetlinkError, Network},
};

/// Minimum time between two readings.
const READ_ROUTES: Duration = Duration::from_secs(1);

/// The routes of the main table, as last read.
pub(super) struct MainRoutes {
    routes: Routes,
    /// True if routes may have changed since they were read.
    stale: bool,
    next: Instant,
}

impl MainRoutes {
    pub(super) fn new() -> Self {
        Self {
            routes: Routes::default(),
            stale: true,
            next: Instant::now(),
        }
    }

    /// The routes as last read.
    pub(super) fn known(&self) -> &Routes {
        &self.routes
    }

    /// Routes may have changed.
    pub(super) fn touch(&mut self) {
        self.stale = true;
    }

    /// The time of the next reading, if one is needed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.stale.then_some(self.next)
    }

    /// Reads them again if it is time to.
    pub(super) async fn refresh(&mut self, network: &impl Network) -> Result<(), NetlinkError> {
        let now = Instant::now();
        if self.due().is_some_and(|due| due <= now) {
            self.next = now + READ_ROUTES;
            self.routes = network.main_routes().await?;
            self.stale = false;
        }
        Ok(())
    }
}

//! The main routing table, which is long and always changing on a router.

use tokio::time::{Duration, Instant};

use super::{
    devices::Routes,
    netlink::{NetlinkError, Network},
};

/// Least time between two readings.
const READ_ROUTES: Duration = Duration::from_secs(1);

/// Where the main routing table leads.
pub(super) struct MainRoutes {
    routes: Routes,
    /// Whether anything changed since they were read.
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

    /// When to read them again, if they have to be.
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

//! A Service with servers behind it.

use std::ops::Deref;

use anyhow::Result;

use crate::{ECHO_TARGET, Lab, Pod, Service, traffic::Server};

/// The echo Service of some pods. Their servers run until this is dropped.
pub struct Served {
    service: Service,
    _servers: Vec<Server>,
}

impl Deref for Served {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl Lab {
    /// Starts an echo server on each pod, and writes the manifest of the Service that leads
    /// to them.
    pub fn serve<'pod>(&self, pods: impl IntoIterator<Item = &'pod Pod>) -> Result<Served> {
        let pods: Vec<_> = pods.into_iter().collect();
        let servers = pods.iter().map(|pod| Server::start(pod, ECHO_TARGET));
        let servers = servers.collect::<Result<_>>()?;
        let service = Service::echo(self.families()).endpoints(pods);
        self.manifests.write(&service)?;
        Ok(Served {
            service,
            _servers: servers,
        })
    }
}

//! One cluster for all tests of a program: starting a control plane takes
//! longer than most tests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow, bail};

use super::{Cluster, ServiceRanges};
use crate::topology::Topology;

static SHARED: Mutex<Shared> = Mutex::new(Shared::Unused);

#[derive(Debug)]
enum Shared {
    Unused,
    Running(Arc<Cluster>),
    /// The error that the start failed with. Another attempt would take as long.
    Failed(String),
}

/// Nodes enough for topology hints; most tests have nothing on the third one.
const TOPOLOGY: Topology = Topology {
    nodes: 3,
    ..Topology::FLANNEL
};

/// Returns the cluster of this test program: started when it is first asked for,
/// gone when the program ends. Tests share it in namespaces of their own; those
/// that change what belongs to no namespace start a cluster of their own.
pub fn shared() -> Result<Arc<Cluster>> {
    let mut shared = lock();
    match &*shared {
        Shared::Running(cluster) => return Ok(Arc::clone(cluster)),
        Shared::Failed(reason) => bail!("no cluster: {reason}"),
        Shared::Unused => {}
    }
    end_with_program()?;
    match Cluster::start(TOPOLOGY, ServiceRanges::of(TOPOLOGY.families)) {
        Ok(cluster) => {
            let cluster = Arc::new(cluster);
            *shared = Shared::Running(Arc::clone(&cluster));
            Ok(cluster)
        }
        Err(error) => {
            *shared = Shared::Failed(format!("{error:#}"));
            Err(error)
        }
    }
}

fn lock() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Statics are never dropped; this drops the cluster after the last test.
fn end_with_program() -> Result<()> {
    extern "C" fn end() {
        // Taken out first: dropping must not hold the lock.
        let cluster = std::mem::replace(&mut *lock(), Shared::Unused);
        drop(cluster);
    }
    // SAFETY: the function does not unwind: nothing in it panics.
    let registered = unsafe { libc::atexit(end) };
    if registered == 0 {
        Ok(())
    } else {
        Err(anyhow!("atexit refused"))
    }
}

//! The socket LB's side of the agent: which processes it serves, and what is
//! done for sockets whose backend went away.
//!
//! The programs themselves are `dataplane::cgroup`'s. Whatever a kernel or host
//! lacks for them is the packet path's to serve, so it is logged and no reason
//! to stop.

pub mod diag;
pub mod ending;
pub mod exceptions;
pub mod folders;
pub mod namespaces;
pub mod pods;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::ValueEnum;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tracing::{info, warn};

use self::{
    ending::end_stale,
    exceptions::{Exceptions, Pattern},
    folders::Folders,
};
use crate::{
    dataplane::{cgroup, load::Loaded, pins::Pins, serving::Serving, stale::StaleSockets},
    metrics::Metrics,
    source::{
        Source,
        kubernetes::{self, packet_pods},
    },
    sys,
};

/// Time to wait for further backends to be removed before sockets are looked for.
const GATHER: Duration = Duration::from_millis(50);
/// Delay of a second look: a call in progress may have picked a backend while it was
/// being removed.
const AGAIN: Duration = Duration::from_secs(1);
/// Time between two looks at the cgroups without news of any.
const REFRESH: Duration = Duration::from_mins(1);

/// The consequence of running without the programs, for the log.
const NOT_TRANSLATED: &str = "the socket LB is off; packets are translated instead, but for those of the host's own processes to its own addresses";

/// The value of `--sockets`: whose calls are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Of all processes
    All,
    /// Of the host's own processes; pods' traffic is translated in packets
    Host,
    /// Of none but those that meet no packet hook: the host's own to its own addresses
    Off,
}

/// Settings of the socket LB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketConfig {
    pub mode: Mode,
    /// None for the cgroup2 mount, wherever that is.
    pub cgroup_root: Option<PathBuf>,
    pub exceptions: Vec<Pattern>,
}

/// The socket LB of one node.
pub struct Sockets {
    mode: Mode,
    stale: Option<Arc<StaleSockets>>,
    exceptions: Option<Excepted>,
    metrics: Metrics,
}

impl Sockets {
    /// Puts the socket programs in place, or takes them away, as configured.
    /// The cookie of the network namespace must be in `CONFIG` already.
    pub fn start(
        loaded: &mut Loaded,
        pins: &Pins,
        config: &SocketConfig,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let mut sockets = Self {
            mode: config.mode,
            stale: None,
            exceptions: None,
            metrics,
        };
        let mut serving = Serving::open(loaded)?;
        let Some(root) = root(config)? else {
            serving.serve(false, false);
            cgroup::detach(loaded, pins)?;
            return Ok(sockets);
        };
        serving.serve(config.mode != Mode::Off, config.mode == Mode::All);
        leave_what_cannot_be_ended(&mut serving, config.mode);
        if let Err(error) = cgroup::attach(loaded, pins, &root) {
            let error = anyhow::Error::new(error);
            warn!("{NOT_TRANSLATED}: {error:#}");
            serving.serve(false, false);
            cgroup::detach(loaded, pins)?;
            return Ok(sockets);
        }
        info!(cgroup = %root.display(), mode = ?config.mode, "socket programs attached");
        sockets.stale = Some(Arc::new(StaleSockets::open(pins)?));
        let mut excepted = Excepted::open(serving, root, config.exceptions.clone())?;
        excepted.refresh();
        sockets.exceptions = Some(excepted);
        Ok(sockets)
    }

    /// Keeps going until polled no more. `removed_backends` tells when backends stop
    /// serving; `source` knows which pods of the node ask for the packet path.
    pub async fn run(self, removed_backends: Arc<Notify>, source: &Source, node: &str) {
        let Self {
            mode,
            stale,
            exceptions,
            metrics,
        } = self;
        let (sender, uids) = watch::channel(BTreeSet::new());
        let serves = exceptions.is_some();
        let ask = async {
            if let Source::Kubernetes(access) = source
                && mode == Mode::All
                && serves
                // If not, the source says why and the agent ends.
                && let Ok(server) = kubernetes::api_server(access, node).await
            {
                packet_pods::follow(server, node, sender, metrics.clone()).await;
            }
        };
        let end = async {
            if let Some(stale) = stale {
                end_departed(&stale, &removed_backends, &metrics).await;
            }
        };
        let except = async {
            if let Some(mut exceptions) = exceptions {
                exceptions.follow(uids).await;
            }
        };
        tokio::join!(end, ask, except);
        std::future::pending::<()>().await;
    }
}

/// Ends stale sockets whenever backends stop serving, and at the start: some
/// may have while no agent ran.
async fn end_departed(stale: &Arc<StaleSockets>, removed_backends: &Notify, metrics: &Metrics) {
    loop {
        look(stale, metrics).await;
        sleep(AGAIN).await;
        look(stale, metrics).await;
        removed_backends.notified().await;
        sleep(GATHER).await;
    }
}

/// Ends the sockets that are stale now.
async fn look(stale: &Arc<StaleSockets>, metrics: &Metrics) {
    let stale = Arc::clone(stale);
    let ended = tokio::task::spawn_blocking(move || end_stale(&stale)).await;
    if let Ok(ended) = ended
        && ended > 0
    {
        info!(
            sockets = ended,
            "ended UDP sockets whose backend serves no more"
        );
        metrics.sockets_ended(ended);
    }
}

/// Leaves connected UDP sockets to the packet path where they could not be ended
/// when their backend goes away: there they get another one.
fn leave_what_cannot_be_ended(serving: &mut Serving, mode: Mode) {
    let host = ending::check_own();
    let pods = ending::check_others();
    serving.leave_connected_udp(host.is_err(), pods.is_err());
    let (whose, error) = match (host, pods) {
        (Err(error), _) if mode != Mode::Off => ("", error),
        (Ok(()), Err(error)) if mode == Mode::All => (" of pods", error),
        _ => return,
    };
    warn!(
        "connected UDP sockets{whose} are left to the packet path, because those of removed backends cannot be ended: {error:#}"
    );
}

/// The cgroup to attach to, if any.
fn root(config: &SocketConfig) -> anyhow::Result<Option<PathBuf>> {
    match &config.cgroup_root {
        Some(root) if sys::filesystems::is_cgroup2(root) => Ok(Some(root.clone())),
        Some(root) => Err(sys::SystemError::NotCgroup2(root.clone()).into()),
        None => match sys::filesystems::cgroup2_mount() {
            Ok(root) => {
                if !sys::filesystems::is_root_cgroup(&root) {
                    warn!(
                        cgroup = %root.display(),
                        "only the processes of this container are in the cgroup that is mounted; mount the host's and name it by --cgroup-root"
                    );
                }
                Ok(Some(root))
            }
            Err(error) => {
                warn!("{NOT_TRANSLATED}: {error}");
                Ok(None)
            }
        },
    }
}

/// The cgroups that are left alone, as they come and go.
struct Excepted {
    serving: Serving,
    root: PathBuf,
    /// Cgroups excepted by the operator, and those of pods that ask for the packet path.
    patterns: Vec<Pattern>,
    pods: Vec<Pattern>,
    folders: Folders,
}

impl Excepted {
    fn open(serving: Serving, root: PathBuf, patterns: Vec<Pattern>) -> anyhow::Result<Self> {
        Ok(Self {
            serving,
            root,
            patterns,
            pods: Vec::new(),
            folders: Folders::open().context("watch cgroups")?,
        })
    }

    /// Finds the cgroups that are there now.
    fn refresh(&mut self) {
        let find = |all: &Self| Exceptions::find(&all.root, all.patterns.iter().chain(&all.pods));
        let mut found = find(self);
        // A folder is watched before it is read for the last time, so that
        // nothing appears in between.
        while self.folders.follow(&found.folders) {
            found = find(self);
        }
        if let Err(error) = self.serving.except(&found.cgroups) {
            let error = anyhow::Error::new(error);
            warn!("cannot leave the processes of a cgroup alone: {error:#}");
        }
    }

    /// Follows them until polled no more.
    async fn follow(&mut self, mut uids: watch::Receiver<BTreeSet<String>>) {
        loop {
            let refresh = sleep(REFRESH);
            tokio::select! {
                changed = self.folders.changed() => if let Err(error) = changed {
                    warn!("new cgroups go unnoticed for up to {REFRESH:?}: {error}");
                    sleep(REFRESH).await;
                },
                Ok(()) = uids.changed() => {
                    let asking = uids.borrow_and_update();
                    self.pods = asking.iter().flat_map(|uid| pods::cgroups(uid)).collect();
                }
                () = refresh, if !self.folders.is_empty() => {}
            }
            self.refresh();
        }
    }
}

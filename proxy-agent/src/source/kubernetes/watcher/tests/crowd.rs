//! All agents of a large cluster at once, after a restart of the API server.

use std::cell::Cell;

use futures::future::join_all;

use super::*;
use crate::source::kubernetes::limits::{Limits, RateLimit};

const AGENTS: u64 = 5_000;
/// Services and EndpointSlices of 10,000 Services with 100,000 endpoints, the agent's own
/// Node, and `ServiceCIDRs`.
const OBJECTS: [usize; 4] = [10_000, 10_000, 1, 1];
/// From the beginning until the API server stops.
const QUIET: Duration = Duration::from_secs(100);

/// An API server that goes away and comes back without a memory of older versions.
struct Cluster {
    start: Instant,
    outage: Duration,
    asked: RefCell<Vec<(&'static str, Duration)>>,
    open: Cell<usize>,
}

struct Agent {
    cluster: Rc<Cluster>,
    limits: Limits,
    /// It has what the API server knows since its restart.
    is_new: bool,
}

impl Agent {
    async fn ask(&mut self, request: &'static str) -> kube::Result<()> {
        sleep_until(self.limits.reserve()).await;
        let cluster = &self.cluster;
        let at = cluster.start.elapsed().saturating_sub(QUIET);
        cluster.asked.borrow_mut().push((request, at));
        if at < cluster.outage {
            return Err(kube::Error::Service("connection refused".into()));
        }
        if request == "watch" && !self.is_new {
            let gone = Status::failure("too old", "Expired").with_code(410);
            return Err(kube::Error::Api(Box::new(gone)));
        }
        self.is_new = true;
        cluster.open.set(cluster.open.get() + 1);
        Ok(())
    }
}

impl Requests for Agent {
    type Object = Service;

    async fn list(&mut self, _: &str) -> kube::Result<Listed<Service>> {
        unreachable!("lists are streamed")
    }

    async fn stream(&mut self, _: &str, _: u32) -> kube::Result<Events<Service>> {
        self.ask("stream").await?;
        let list = stream::iter([Ok(end_of_list())]);
        Ok(list.chain(stream::pending()).boxed())
    }

    async fn watch(&mut self, _: &str, _: u32) -> kube::Result<Events<Service>> {
        self.ask("watch").await?;
        Ok(stream::pending().boxed())
    }

    async fn failed(&mut self, _: &Error) {}
}

type BySecond = BTreeMap<u64, usize>;

/// The lists and watches that all agents ask for after an API server stopped, by the
/// second since then.
async fn after_outage(outage: Duration) -> (BySecond, BySecond) {
    let cluster = Rc::new(Cluster {
        start: Instant::now(),
        outage,
        asked: RefCell::default(),
        open: Cell::new(0),
    });
    let watches = (0..AGENTS).flat_map(|agent| {
        let limits = Limits::new(RateLimit::default(), Chance::seeded(agent));
        let cluster = &cluster;
        OBJECTS.into_iter().enumerate().map(move |(kind, known)| {
            let requests = Agent {
                cluster: Rc::clone(cluster),
                limits: limits.clone(),
                is_new: false,
            };
            let seed = (agent << 3) + kind as u64;
            let watcher = Watcher {
                requests,
                pacing: Pacing::new(Chance::seeded(seed)),
                // Open since the beginning.
                state: State::Watching(Watch::new(silence(QUIET.as_secs()), 290)),
                not_before: None,
                streams: true,
                failing: false,
                seen: Some("7".to_owned()),
                known,
            };
            follow(watcher)
        })
    });
    let expected = OBJECTS.len() * usize::try_from(AGENTS).expect("few");
    let all_open = async {
        while cluster.open.get() < expected {
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        _ = join_all(watches) => unreachable!("watches do not end"),
        () = all_open => {}
    }
    let (mut lists, mut watches) = (BySecond::new(), BySecond::new());
    for (request, at) in cluster.asked.borrow().iter() {
        let counts = match *request {
            "stream" => &mut lists,
            _ => &mut watches,
        };
        *counts.entry(at.as_secs()).or_default() += 1;
    }
    (lists, watches)
}

async fn follow(mut watcher: Watcher<Agent>) {
    loop {
        // Errors are as good as news here.
        let _ = watcher.next().await;
    }
}

/// 5,000 agents with four watches each ask for 20,000 lists, of which 10,000 are large.
#[rstest]
#[case::restart(2)]
#[case::outage(60)]
#[tokio::test(start_paused = true)]
async fn agents_do_not_list_at_once_after_a_restart(#[case] outage: u64) {
    let (lists, watches) = after_outage(Duration::from_secs(outage)).await;
    let histogram = |counts: &BySecond| {
        let counts = counts.iter().filter(|(second, _)| **second >= outage);
        let counts = counts.map(|(second, count)| format!("{}:{count}", second - outage));
        counts.collect::<Vec<_>>().join(" ")
    };
    println!("outage of {outage} s: requests in each second since its end");
    println!("watches {}", histogram(&watches));
    println!("lists   {}", histogram(&lists));
    let worst = |counts: &BySecond| counts.values().copied().max().unwrap_or(0);
    assert_eq!(lists.values().sum::<usize>(), 20_000);
    assert!(worst(&lists) < 9_000, "{}", worst(&lists));
    assert!(worst(&watches) < 20_000, "{}", worst(&watches));
    let last = *lists.keys().last().expect("lists");
    assert!(last <= outage + 75, "all are up to date: {last}");
}

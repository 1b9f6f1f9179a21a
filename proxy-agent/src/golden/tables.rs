//! Manifests in, tables out: `tests/golden/NAME.yaml` is a cluster as the node `node-1`
//! sees it, `NAME.txt` what its tables say then. `UPDATE_GOLDEN=1` writes the latter.
//!
//! No root and no kernel is needed: the tables are in memory.

use std::{
    cell::RefCell, collections::BTreeSet, ffi::OsStr, fmt::Write as _, fs, path::Path, rc::Rc,
    time::Duration,
};

use proxy_common::{
    family::{Family, V4, V6},
    frontend::{Frontend, FrontendKey},
};

use crate::{
    dataplane::Dataplane,
    golden,
    metrics::Metrics,
    model::ObjectKey,
    plan::{
        filter::FlowEnds,
        memory::{Failed, Memory, Resolved},
        write::{Capacity, Tables, Write},
    },
    reconcile::{Desired, Intervals, Reconciler, SyncOutcome, SyncTarget},
    source::{self, manifests},
    table_sync::TableSync,
};

const NODE: &str = "node-1";
const ROOM: Capacity = Capacity {
    frontends: 1000,
    services: 1000,
    slots: 1000,
    backends: 1000,
    source_ranges: 1000,
};

#[test]
fn tables_are_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = fs::read_dir(folder).expect("the folder of cases");
    let mut cases: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension() == Some(OsStr::new("yaml")))
        .collect();
    cases.sort();
    assert!(cases.len() >= 15, "cases are missing");
    let compared = cases
        .iter()
        .map(|case| golden::compare(&case.with_extension("txt"), &tables(case)).err());
    let different: Vec<_> = compared.flatten().collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Runs the agent's chain on a file and returns what the tables of both families hold.
fn tables(manifest: &Path) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::copy(manifest, folder.path().join("case.yaml")).expect("a copy of the case");
    let objects = manifests::read_once(folder.path()).expect("readable manifests");
    let (v4, v6) = (Target::<V4>::new(), Target::<V6>::new());
    let intervals = Intervals {
        audit: Duration::from_hours(24),
        ..Intervals::default()
    };
    let reconciler = Reconciler::new(NODE, intervals, Metrics::default())
        .with_family::<V4>(v4.clone())
        .with_family::<V6>(v6.clone());
    let (sender, changes) = source::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        sender.send(objects).await.expect("a reconciler");
        drop(sender);
        reconciler.run(changes).await;
    });
    v4.text() + &v6.text()
}

/// A family's tables, shared with the reconciler that fills them.
#[derive(Clone)]
struct Target<F: Family> {
    memory: Shared<F>,
    sync: Rc<RefCell<TableSync<F, Shared<F>>>>,
    problems: Rc<RefCell<Vec<String>>>,
}

#[derive(Clone)]
struct Shared<F: Family>(Rc<RefCell<Memory<F>>>);

impl<F: Family> Dataplane<F> for Shared<F> {
    type Error = Failed;

    fn capacity(&self) -> Capacity {
        ROOM
    }

    fn read(&self) -> Result<Tables<F>, Failed> {
        self.0.borrow().read()
    }

    fn visit_flows(&self, visit: &mut dyn FnMut(&FlowEnds<F::Addr>)) -> Result<(), Failed> {
        self.0.borrow().visit_flows(visit)
    }

    fn write(&mut self, write: &Write<F>) -> Result<(), Failed> {
        self.0.borrow_mut().write(write)
    }
}

impl<F: Family> SyncTarget<F> for Target<F> {
    fn sync(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        complete: bool,
        desired: &mut Desired<F>,
    ) -> SyncOutcome {
        let outcome = self.sync.borrow_mut().sync(services, complete, desired);
        let problems = outcome.problems.iter().map(ToString::to_string);
        self.problems.borrow_mut().extend(problems);
        outcome
    }

    fn audit(
        &mut self,
        services: &BTreeSet<ObjectKey>,
        desired: &mut Desired<F>,
    ) -> anyhow::Result<usize> {
        self.sync.borrow_mut().audit(services, desired)
    }
}

impl<F: Family> Target<F> {
    fn new() -> Self {
        let memory = Shared(Rc::new(RefCell::new(Memory::new(ROOM))));
        let sync = TableSync::new(memory.clone()).expect("readable tables");
        Self {
            memory,
            sync: Rc::new(RefCell::new(sync)),
            problems: Rc::default(),
        }
    }

    fn text(&self) -> String {
        let memory = self.memory.0.borrow();
        let mut text = format!("{}\n", F::NAME);
        let frontends = memory.tables.frontends.iter();
        let frontends: Vec<_> = frontends
            .filter(|(_, frontend)| frontend.service != Frontend::NO_SERVICE)
            .collect();
        if frontends.is_empty() {
            text.push_str("  nothing\n");
        }
        for (key, frontend) in frontends {
            describe(&mut text, &memory, key, *frontend);
        }
        for problem in self.problems.borrow().iter() {
            let _ = writeln!(text, "  problem: {problem}");
        }
        text
    }
}

fn describe<F: Family>(
    text: &mut String,
    memory: &Memory<F>,
    key: &FrontendKey<F::Addr>,
    frontend: Frontend,
) {
    let kind = match frontend.kind {
        Frontend::CLUSTER_IP => "ClusterIP",
        Frontend::NODE_PORT => "NodePort",
        Frontend::EXTERNAL_IP => "external IP",
        _ => "load balancer",
    };
    let address = if frontend.kind == Frontend::NODE_PORT {
        "this node".to_owned()
    } else {
        F::ip(key.addr).to_string()
    };
    let name = &memory.tables.names[&frontend.service];
    let (port, protocol) = (key.port.get(), key.protocol);
    let _ = writeln!(text, "  {address} port {port}/{protocol}: {kind} of {name}");
    let (outside, here) = (memory.resolve(key), memory.resolve_here(key));
    if outside == here {
        let _ = writeln!(text, "    everyone: {}", shown(&outside));
    } else {
        let _ = writeln!(text, "    outside: {}", shown(&outside));
        let _ = writeln!(text, "    pods and this node: {}", shown(&here));
    }
    if frontend.flags & Frontend::SOURCE_RANGES != 0 {
        let ranges = memory.tables.source_ranges.iter();
        let ranges: Vec<_> = ranges
            .filter(|range| range.service() == Some(frontend.service))
            .map(|range| format!("{}/{}", F::ip(range.range.client), range.bits - 32))
            .collect();
        let _ = writeln!(text, "    only for: {}", ranges.join(", "));
    }
    let affinity = memory.tables.services[frontend.service as usize].session_affinity;
    if affinity.seconds > 0 {
        let _ = writeln!(text, "    session affinity: {} s", affinity.seconds);
    }
}

fn shown<F: Family>(resolved: &Resolved<F>) -> String {
    match resolved {
        Resolved::Backends(backends) => {
            let backends = backends
                .iter()
                .map(|(ip, port)| format!("{ip} port {port}"));
            backends.collect::<Vec<_>>().join(", ")
        }
        Resolved::Reject => "refused".to_owned(),
        Resolved::Drop => "dropped".to_owned(),
        other => format!("{other:?}"),
    }
}

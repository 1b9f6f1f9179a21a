//! The tables in the kernel take and give back what the planner's tables in
//! memory do.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use proxy_agent::{
    config::table_sizes::BYTES_PER_FLOW,
    dataplane::{
        Dataplane as _, growth,
        load::{self, FixedSizes, LoadOptions, Sizes},
        mapped::Access,
        maps::Maps as _,
        pins::Pins,
        tables::{KernelFamily, KernelTables},
    },
    plan::{
        Planner,
        memory::Memory,
        write::{Tables, Write},
    },
    reconcile::growth::{BYTES_PER_ENDPOINT, BYTES_PER_SERVICE_PORT},
    select::DesiredPort,
};
use proxy_common::{
    family::{V4, V6},
    masquerade::PortRange,
    service::Service,
};
use proxy_tests::{
    Family,
    bpffs::PinDirectory,
    name,
    packet::{Cast, Frontend, ServicePort},
};

/// A port with everything a port can have, and what it becomes.
fn changes(cast: Cast) -> [Vec<ServicePort>; 4] {
    let [range, other] = match cast.family {
        Family::V4 => ["198.51.100.0/24", "203.0.113.0/25"],
        Family::V6 => ["fd00:51::/32", "fd00:203::/33"],
    };
    let plain = ServicePort::tcp(cast.vip(), &cast.endpoints(3)).here(&cast.endpoints(1));
    let full = plain
        .clone()
        .with_session_affinity(10_800)
        .for_clients(range)
        .for_clients(other)
        .with(Frontend::node_port(30_080).local())
        .with(Frontend::external_ip(cast.vip_with(20, 80)).local())
        .with(Frontend::load_balancer(cast.vip_with(21, 80)).restricted_but_for_itself());
    let mut other = full.clone();
    other.endpoints.pop();
    other.elsewhere = vec![cast.endpoint(3)];
    other.source_ranges.pop();
    other.affinity = None;
    [vec![full], vec![other], vec![plain], Vec::new()]
}

fn agree<F: KernelFamily>(family: Family) {
    let directory = PinDirectory::reserve(&name::unique()).expect("a bpf file system");
    let pins = Pins::new(directory.path());
    let loaded = load::load(&LoadOptions {
        pins: pins.clone(),
        sizes: Sizes {
            services: 64,
            endpoints: 64,
            flows: 64,
            ..Sizes::DEFAULT
        },
        masquerade_ports: PortRange::UNPRIVILEGED,
        log_level: 0,
    });
    loaded.unwrap_or_else(|error| panic!("{:#}", anyhow::Error::new(error)));
    let mut kernel = KernelTables::<F>::open(&pins, Access::Write).expect("tables");
    let mut memory = Memory::new(kernel.capacity());
    let mut planner = Planner::<F>::new(kernel.capacity());
    let mut now = Instant::now();
    let cast = Cast::of(family);
    let service = ServicePort::tcp(cast.vip(), &[]).service();
    for ports in changes(cast) {
        let desired: Vec<DesiredPort<F>> = ports.iter().map(ServicePort::desired).collect();
        let plan = planner.update(&service, &desired, now);
        assert_eq!(plan.problems, []);
        let kinds = plan.writes.iter().map(Write::table);
        assert!(kinds.clone().count() > 0, "a change has writes");
        for write in &plan.writes {
            memory.write(write).expect("memory");
            kernel
                .write(write)
                .unwrap_or_else(|error| panic!("{write:?}: {error:?}"));
        }
        let found = kernel.read().expect("readable");
        assert_eq!(trimmed(found.clone()), trimmed(memory.tables.clone()));
        // An agent that starts now has nothing to do.
        let mut adopted = Planner::adopt(kernel.capacity(), &found);
        assert_eq!(adopted.update(&service, &desired, now).writes, []);
        assert_eq!(adopted.remove_orphans().writes, []);
        now += Duration::from_secs(2);
    }
}

/// Without what either side may leave out.
fn trimmed<F: KernelFamily>(mut tables: Tables<F>) -> Tables<F> {
    let unused = |service: &Service| service.cluster.count == 0 && service.local.count == 0;
    while tables.services.last().is_some_and(unused) {
        tables.services.pop();
    }
    while tables.backends.last().is_some_and(|b| b.generation == 0) {
        tables.backends.pop();
    }
    let slots = tables.services.iter().flat_map(|s| [s.cluster, s.local]);
    let used = slots.filter(|run| run.count > 0);
    let end = used.map(|run| run.first + run.count).max().unwrap_or(0);
    tables.slots.truncate(end as usize);
    for filter in &mut tables.filters {
        while filter.last() == Some(&0) {
            filter.pop();
        }
    }
    tables
}

#[test]
fn kernel_and_memory_agree_in_both_families() {
    agree::<V4>(Family::V4);
    agree::<V6>(Family::V6);
}

/// Tables of Services grow without a change to any row, also if an agent ends between
/// the steps: before it has made the larger tables, and before those that were moved aside
/// are gone.
fn grow<F: KernelFamily>(family: Family) {
    let directory = PinDirectory::reserve(&name::unique()).expect("a bpf file system");
    let pins = Pins::new(directory.path());
    let with_size = |size| Sizes {
        services: size,
        endpoints: size,
        source_ranges: size,
        flows: 64,
        ..Sizes::DEFAULT
    };
    let load = |size| {
        let loaded = load::load(&LoadOptions {
            pins: pins.clone(),
            sizes: with_size(size),
            masquerade_ports: PortRange::UNPRIVILEGED,
            log_level: 0,
        });
        loaded.unwrap_or_else(|error| panic!("{:#}", anyhow::Error::new(error)))
    };
    let read = || {
        let kernel = KernelTables::<F>::open(&pins, Access::Read).expect("tables");
        (trimmed(kernel.read().expect("readable")), kernel.capacity())
    };
    drop(load(16));
    let cast = Cast::of(family);
    let service = ServicePort::tcp(cast.vip(), &[]).service();
    let [port, ..] = changes(cast);
    let desired: Vec<DesiredPort<F>> = port.iter().map(ServicePort::desired).collect();
    {
        let mut kernel = KernelTables::<F>::open(&pins, Access::Write).expect("tables");
        let mut planner = Planner::<F>::new(kernel.capacity());
        for write in planner.update(&service, &desired, Instant::now()).writes {
            kernel.write(&write).expect("written");
        }
    }
    let (before, _) = read();
    assert!(!before.names.is_empty());

    // Larger ones that could not be made leave those that there were.
    for (asked, made) in [(32, 16), (32, 32)] {
        growth::set_aside(&pins, with_size(asked)).expect("moved aside");
        drop(load(made));
        let (after, capacity) = read();
        assert_eq!(after, before);
        assert_eq!(
            [capacity.services, capacity.backends, capacity.source_ranges],
            [made; 3]
        );
    }

    let aside = [
        "FRONTENDS",
        "SERVICES",
        "SLOTS",
        "BACKENDS",
        "NAMES",
        "SOURCE_RANGES",
    ]
    .map(|table| format!("{table}_{}", F::SUFFIX));
    for table in &aside {
        let map = pins.open(table).expect("a pinned table");
        map.pin(pins.map(&format!("{table}-former")))
            .expect("pinned once more");
    }
    drop(load(64));
    assert_eq!(read().0, before);
    for table in &aside {
        assert!(!pins.map(&format!("{table}-former")).exists(), "{table}");
    }
}

#[test]
fn service_tables_grow_in_both_families() {
    grow::<V4>(Family::V4);
    grow::<V6>(Family::V6);
}

/// The kernel's own figures for the tables whose size follows the node's memory; and a
/// later agent that finds less memory keeps them.
#[test]
fn flow_tables_take_the_memory_they_are_reckoned_with() {
    const FLOWS: u32 = 16_384;
    let directory = PinDirectory::reserve(&name::unique()).expect("a bpf file system");
    let pins = Pins::new(directory.path());
    let with_flows = |flows| Sizes {
        services: 64,
        endpoints: 64,
        flows,
        ..Sizes::DEFAULT
    };
    let _loaded = load::load(&LoadOptions {
        pins: pins.clone(),
        sizes: with_flows(FLOWS),
        masquerade_ports: PortRange::UNPRIVILEGED,
        log_level: 0,
    })
    .unwrap_or_else(|error| panic!("{:#}", anyhow::Error::new(error)));
    let found = bytes(&pins, &["FLOWS", "MASQ", "AFFINITY"]) / u64::from(FLOWS);
    assert!(
        (BYTES_PER_FLOW / 8 * 7..=BYTES_PER_FLOW).contains(&found),
        "{found} bytes for each flow"
    );
    for (by_memory, expected) in [(FLOWS / 4, FLOWS), (FLOWS * 4, FLOWS * 4)] {
        let sizes = growth::keeping_larger(&pins, with_flows(by_memory), FixedSizes::default());
        assert_eq!(sizes, with_flows(expected));
    }
}

/// The kernel's own figures for the tables of Services, which grow as far as memory allows:
/// what is allocated with them.
#[test]
fn service_tables_take_the_memory_they_are_reckoned_with() {
    const ENTRIES: u32 = 16_384;
    let directory = PinDirectory::reserve(&name::unique()).expect("a bpf file system");
    let pins = Pins::new(directory.path());
    let _loaded = load::load(&LoadOptions {
        pins: pins.clone(),
        sizes: Sizes {
            services: ENTRIES,
            endpoints: ENTRIES,
            flows: 64,
            ..Sizes::DEFAULT
        },
        masquerade_ports: PortRange::UNPRIVILEGED,
        log_level: 0,
    })
    .unwrap_or_else(|error| panic!("{:#}", anyhow::Error::new(error)));
    for (tables, reckoned) in [
        (
            &["FRONTENDS", "SERVICES", "NAMES"][..],
            BYTES_PER_SERVICE_PORT,
        ),
        (&["SLOTS", "BACKENDS"], BYTES_PER_ENDPOINT),
    ] {
        let found = bytes(&pins, tables) / u64::from(ENTRIES);
        assert!(
            (reckoned / 8 * 7..=reckoned).contains(&found),
            "{tables:?}: {found} bytes for each"
        );
    }
}

/// Kernel memory of these tables, of both families.
fn bytes(pins: &Pins, tables: &[&str]) -> u64 {
    let names = tables
        .iter()
        .flat_map(|table| ["V4", "V6"].map(|family| format!("{table}_{family}")));
    let figures = names.map(|name| -> u64 {
        let map = pins.open(&name).expect("a pinned table");
        let fd = map.fd().as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("procfs");
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        line.expect("a figure").trim().parse().expect("a number")
    });
    figures.sum()
}

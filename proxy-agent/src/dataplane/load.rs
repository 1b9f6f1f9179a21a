//! Loads the programs, on the maps that are pinned already if there are any.

pub mod pinned;

use std::{fs, io, path::PathBuf};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapError, ProgramArray},
    programs::{ProgramError, SchedClassifier},
};
use proxy_common::{
    LAYOUT_VERSION,
    config::Config,
    masquerade::PortRange,
    table::{Entries, Table},
};
use tracing::warn;

use self::pinned::Programs;
use crate::{
    dataplane::{
        growth,
        mapped::{Access, Mapped, MappedError},
        maps::Maps,
        pins::{self, Pins},
        sweep::Swept,
    },
    sys::kernel,
};

/// The eBPF programs, built by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tandem"));

/// First kernel whose checksum helper knows `BPF_F_IPV6`.
pub const BPF_F_IPV6_SINCE: (u32, u32) = (6, 16);

/// First kernel whose programs can say which error a call fails with.
pub const SET_RETVAL_SINCE: (u32, u32) = (5, 18);

/// First kernel whose routing look-ups return the source address.
pub const FIB_SOURCE_SINCE: (u32, u32) = (6, 7);

/// Programs that are attached to devices, by name.
pub const HOOK_PROGRAMS: [&str; 4] = ["ingress", "egress", "ingress_l3", "egress_l3"];

/// Programs of the slow path, in the order of their index in `PROGRAMS`.
pub const SLOW_PROGRAMS: [&str; 8] = [
    "ingress_slow_v4",
    "ingress_slow_v6",
    "egress_slow_v4",
    "egress_slow_v6",
    "host_slow_v4",
    "host_slow_v6",
    "uplink_slow_v4",
    "uplink_slow_v6",
];

/// The datapath cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("create folder {path} for pins (is a bpf file system mounted there?)")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("load the eBPF object")]
    Object(#[source] EbpfError),
    #[error("load eBPF program {program}")]
    Program {
        program: &'static str,
        #[source]
        source: ProgramError,
    },
    #[error("pin eBPF program {program}")]
    Pin {
        program: &'static str,
        #[source]
        source: aya::pin::PinError,
    },
    #[error("eBPF object has no {name}")]
    Missing { name: &'static str },
    #[error("open table CONFIG")]
    OpenConfig(#[source] MapError),
    #[error("use table CONFIG")]
    Config(#[source] MappedError),
    #[error("read the size of table {table}")]
    Size {
        table: String,
        #[source]
        source: MapError,
    },
    #[error(transparent)]
    Growth(#[from] growth::ServiceGrowthError),
    #[error("say what the pinned programs were made from")]
    Identity(#[source] io::Error),
    #[error("enter the slow path's programs in PROGRAMS")]
    Programs(#[source] MapError),
    #[error(
        "the tables below {path} have layout {found}, this agent has {LAYOUT_VERSION}; `proxy-agent cleanup` removes them"
    )]
    Layout { path: PathBuf, found: u32 },
}

/// Sizes of the tables, in entries of each family. They take effect when the
/// tables are made; pinned ones of Services and flows grow, and none shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub services: u32,
    pub endpoints: u32,
    pub source_ranges: u32,
    pub flows: u32,
    /// Network devices, of both families.
    pub devices: u32,
    /// Prefixes of the local routing table.
    pub local_addrs: u32,
}

/// Which sizes a flag gives: those tables become no larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FixedSizes {
    pub services: bool,
    pub endpoints: bool,
    pub flows: bool,
}

impl Sizes {
    /// Frontends there is room for, for each Service port.
    pub const FRONTENDS_PER_SERVICE: u32 = 4;

    /// The sizes unless flags say otherwise; that of flows if the node's memory is unknown.
    /// Tables of source ranges, devices and local addresses take memory only for the entries
    /// that they hold.
    pub const DEFAULT: Self = Self {
        services: 65_536,
        endpoints: 262_144,
        source_ranges: 65_536,
        flows: 262_144,
        devices: 16_384,
        local_addrs: 65_536,
    };
}

impl Sizes {
    /// Entries of a map, unless it has as many as the programs declare.
    pub fn of(self, table: Table) -> Option<u32> {
        Some(match table.entries() {
            Entries::Declared => return None,
            Entries::Count(count) => count,
            Entries::Frontends => self.services.saturating_mul(Self::FRONTENDS_PER_SERVICE),
            Entries::ServicePorts => self.services,
            Entries::Slots => self.endpoints.saturating_mul(2),
            Entries::Endpoints => self.endpoints,
            Entries::SourceRanges => self.source_ranges,
            Entries::Flows => self.flows,
            Entries::Affinity => self.flows / 4,
            Entries::Devices => self.devices,
            Entries::LocalAddrs => self.local_addrs,
        })
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Options for loading the datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    pub pins: Pins,
    pub sizes: Sizes,
    /// Ports that masqueraded flows may take.
    pub masquerade_ports: PortRange,
    /// Highest level of the programs' own log lines (1 error … 5 trace; 0
    /// removes them from the programs).
    pub log_level: u8,
}

/// The loaded programs and what all of them share.
pub struct Loaded {
    pub ebpf: Ebpf,
    pub config: Mapped<Config>,
    /// True if the tables existed already.
    pub adopted: bool,
    /// Where the programs come from.
    pub programs: Programs,
    /// Size of each flow table, in entries.
    pub flows: u32,
    /// The cgroup that the socket programs are on, if they are on one.
    pub cgroup: Option<PathBuf>,
    /// Size of each table of reply tuples.
    pub reply_tuples: u32,
}

impl Loaded {
    /// Returns whether a sweep found the flow table, or that of the reply tuples, more
    /// than 80 % full; once it was, more than half: or a flood would take turns with
    /// the sweeps.
    pub fn is_pressed(&self, swept: Swept, before: bool) -> bool {
        let limit = |size: u32| if before { size / 2 } else { size / 5 * 4 };
        let found = |left: u32| left.saturating_add(swept.expired);
        found(swept.flows) > limit(self.flows)
            || found(swept.reply_tuples) > limit(self.reply_tuples)
    }
}

/// Loads the programs and pins their maps.
pub fn load(options: &LoadOptions) -> Result<Loaded, LoadError> {
    let pins = &options.pins;
    for path in [pins.maps(), pins.programs(), pins.links()] {
        fs::create_dir_all(&path).map_err(|source| LoadError::Folder { path, source })?;
    }
    pins.state_flow_layout()
        .map_err(|source| LoadError::Folder {
            path: pins.version(),
            source,
        })?;
    let adopted = pins.map(Table::Config.name()).exists();
    growth::set_aside(pins, options.sizes).map_err(|source| LoadError::Folder {
        path: pins.maps(),
        source,
    })?;
    let mut ebpf = load_object(
        Some(pins),
        options.sizes,
        options.masquerade_ports,
        options.log_level,
    )?;
    let config = config(&ebpf, options, adopted)?;
    let programs = Programs::of(options)?;
    for program in pinned::device_programs() {
        programs.load(&mut ebpf, program)?;
    }
    growth::carry_services_over(pins)?;
    growth::carry_over(pins);
    enter_slow_programs(&mut ebpf)?;
    let (flows, reply_tuples) = compare_sizes(pins, options.sizes)?;
    Ok(Loaded {
        ebpf,
        config,
        adopted,
        programs,
        flows,
        reply_tuples,
        cgroup: None,
    })
}

/// Names the tables that have another size than asked for, because an earlier
/// agent made them. Returns the sizes of the flow tables, and of those of the reply
/// tuples.
fn compare_sizes(pins: &Pins, sizes: Sizes) -> Result<(u32, u32), LoadError> {
    let (mut flows, mut reply_tuples) = (sizes.flows, sizes.flows);
    let mut kept = Vec::new();
    for (table, name) in Pins::tables() {
        let Some(asked) = sizes.of(table) else {
            continue;
        };
        let info = pins.open(&name).and_then(|map| map.info());
        let size = match info {
            Ok(info) => info.max_entries(),
            Err(source) => {
                return Err(LoadError::Size {
                    table: name,
                    source,
                });
            }
        };
        if size != asked {
            match table {
                Table::Flows => flows = size,
                Table::Masquerades => reply_tuples = size,
                _ => {}
            }
            kept.push(format!("{name} {size}, not {asked}"));
        }
    }
    if !kept.is_empty() {
        warn!(
            "tables keep the size they were made with: {}; they grow, but do not shrink. `proxy-agent cleanup` before the start removes all, and open flows with them",
            kept.join(", ")
        );
    }
    Ok((flows, reply_tuples))
}

/// The least level at which the programs log anything: debug.
const LOGS_SINCE: u8 = 4;

/// What the programs are told when they are loaded.
#[derive(Clone, Copy, Debug, Hash)]
struct Globals {
    csum_ipv6: u8,
    set_retval: u8,
    fib_source: u8,
    masquerade_ports: u32,
    log_level: u8,
}

impl Globals {
    fn new(masquerade_ports: PortRange, log_level: u8) -> Self {
        let has = |since| u8::from(kernel::version() >= since);
        Self {
            csum_ipv6: has(BPF_F_IPV6_SINCE),
            set_retval: has(SET_RETVAL_SINCE),
            fib_source: has(FIB_SOURCE_SINCE),
            masquerade_ports: masquerade_ports.to_bits(),
            log_level: if log_level < LOGS_SINCE { 0 } else { log_level },
        }
    }

    /// Returns whether the programs write to the log of the agent that loads them.
    fn log(self) -> bool {
        self.log_level != 0
    }
}

/// Opens the object, with its maps in `pins` or in none.
pub(super) fn load_object(
    pins: Option<&Pins>,
    sizes: Sizes,
    masquerade_ports: PortRange,
    log_level: u8,
) -> Result<Ebpf, LoadError> {
    let tables = Table::ALL.iter().copied();
    let names: Vec<_> = tables
        .flat_map(|table| pins::names(table).map(move |name| (table, name)))
        .collect();
    let globals = Globals::new(masquerade_ports, log_level);
    let mut loader = EbpfLoader::new();
    loader
        .override_global("KERNEL_HAS_BPF_F_IPV6", &globals.csum_ipv6, true)
        .override_global("KERNEL_HAS_SET_RETVAL", &globals.set_retval, true)
        .override_global("KERNEL_HAS_FIB_SOURCE", &globals.fib_source, true)
        .override_global("MASQUERADE_PORTS", &globals.masquerade_ports, true)
        .override_global(aya_log::LEVEL, &globals.log_level, false);
    for (table, name) in &names {
        if let Some(pins) = pins
            && table.is_pinned()
        {
            loader.map_pin_path(name, pins.map(name));
        }
        if let Some(size) = sizes.of(*table) {
            loader.map_max_entries(name, size);
        }
    }
    loader.load(OBJECT).map_err(LoadError::Object)
}

/// The programs' settings.
pub fn open_config(maps: &impl Maps, access: Access) -> Result<Mapped<Config>, LoadError> {
    let map = maps
        .open(Table::Config.name())
        .and_then(Map::from_map_data)
        .map_err(LoadError::OpenConfig)?;
    Mapped::new(&map, access).map_err(LoadError::Config)
}

fn config(ebpf: &Ebpf, options: &LoadOptions, adopted: bool) -> Result<Mapped<Config>, LoadError> {
    let map = ebpf.map(Table::Config.name()).ok_or(LoadError::Missing {
        name: Table::Config.name(),
    })?;
    let mut config: Mapped<Config> = Mapped::new(map, Access::Write).map_err(LoadError::Config)?;
    let found = config.get(0).map_or(0, |config| config.layout);
    if adopted && found != LAYOUT_VERSION && found != 0 {
        return Err(LoadError::Layout {
            path: options.pins.root().to_owned(),
            found,
        });
    }
    if found == 0 {
        let fresh = Config {
            layout: LAYOUT_VERSION,
            hash_key: random_key(),
            ..Config::default()
        };
        // One row, just found.
        let _ = config.set(0, fresh);
    }
    Ok(config)
}

/// A random key for the hash that picks backends.
fn random_key() -> [u64; 2] {
    use std::hash::{BuildHasher as _, RandomState};

    // The standard library seeds each of these from the system.
    [
        RandomState::new().hash_one(0),
        RandomState::new().hash_one(1),
    ]
}

pub(super) fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::Missing { name })?;
    program.load().map_err(|source| LoadError::Program {
        program: name,
        source,
    })
}

/// Makes the slow path reachable. Programs of an earlier agent that are still
/// attached use the new slow path from here on.
fn enter_slow_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let mut fds = Vec::new();
    for name in SLOW_PROGRAMS {
        let failed = |source| LoadError::Program {
            program: name,
            source,
        };
        let program: &SchedClassifier = ebpf
            .program(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(LoadError::Missing { name })?;
        let fd = program.fd().map_err(failed)?.try_clone();
        fds.push(fd.map_err(|error| failed(error.into()))?);
    }
    let map = ebpf
        .map_mut(Table::Programs.name())
        .ok_or(LoadError::Missing {
            name: Table::Programs.name(),
        })?;
    let mut programs = ProgramArray::try_from(map).map_err(LoadError::Programs)?;
    for (index, fd) in (0..).zip(&fds) {
        programs.set(index, fd, 0).map_err(LoadError::Programs)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

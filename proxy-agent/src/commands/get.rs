//! `proxy-agent get`: shows the tables in the kernel. Needs no running agent.
//!
//! Each module makes the rows of one kind of table out of what is in the maps,
//! without any IO; this one reads the maps and shows the rows.

pub mod addresses;
pub mod affinity;
pub mod backends;
pub mod devices;
pub mod flows;
pub mod render;
pub mod services;

use anyhow::Context as _;
use proxy_common::{
    config::Config,
    family::{V4, V6},
    table::Table,
};

use crate::{
    cli::{GetArgs, Resource},
    commands::get::{
        affinity::AffinityRow, backends::BackendRow, flows::FlowRow, render::Row,
        services::ServiceRow,
    },
    dataplane::{
        Dataplane as _, load,
        mapped::Access,
        pins::Pins,
        tables::{KernelFamily, KernelTables, open_affinity, open_flows},
    },
    model::IpFamily,
    sys,
};

/// Shows one kind of table on standard output.
pub fn get(args: &GetArgs) -> anyhow::Result<()> {
    sys::capabilities::require_privileges()?;
    let pins = Pins::new(&args.pins.bpf_root);
    if !pins.map(Table::Config.name()).exists() {
        anyhow::bail!(
            "no tables below {}: is the agent running? (--bpf-root)",
            args.pins.bpf_root.display()
        );
    }
    if is_stale(&pins) {
        eprintln!(
            "The API server has not answered since this node started: this is the last known \
             state, and what has changed since is not in it."
        );
    }
    match args.what {
        Resource::Services => show::<ServiceRow>(args, &pins),
        Resource::Backends => show::<BackendRow>(args, &pins),
        Resource::Flows => show::<FlowRow>(args, &pins),
        Resource::Affinity => show::<AffinityRow>(args, &pins),
        Resource::Devices => {
            let rows = devices::read(&pins, args.family)?;
            render::print(&rows, args.output)
        }
        Resource::Addresses => {
            let rows = addresses::read(&pins, args.family)?;
            render::print(&rows, args.output)
        }
    }
}

fn is_stale(pins: &Pins) -> bool {
    let settings = load::open_config(pins, Access::Read);
    let settings = settings.ok().and_then(|settings| settings.get(0));
    settings.is_some_and(|settings| settings.flags & Config::STALE != 0)
}

/// A row that comes out of the tables of one family.
trait FamilyRow: Row + Ord {
    /// All rows of a family, in any order.
    fn read<F: KernelFamily>(pins: &Pins) -> anyhow::Result<Vec<Self>>;

    /// Namespace of the Service the row belongs to.
    fn namespace(&self) -> &str;
}

impl FamilyRow for ServiceRow {
    fn read<F: KernelFamily>(pins: &Pins) -> anyhow::Result<Vec<Self>> {
        let tables = KernelTables::<F>::open(pins, Access::Read)?.read()?;
        Ok(services::rows(&tables))
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl FamilyRow for BackendRow {
    fn read<F: KernelFamily>(pins: &Pins) -> anyhow::Result<Vec<Self>> {
        let tables = KernelTables::<F>::open(pins, Access::Read)?.read()?;
        Ok(backends::rows(&tables))
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl FamilyRow for FlowRow {
    fn read<F: KernelFamily>(pins: &Pins) -> anyhow::Result<Vec<Self>> {
        let tables = KernelTables::<F>::open(pins, Access::Read)?.read()?;
        let now = flows::now().context("read the clock")?;
        let table = open_flows::<F>(pins)?;
        // Flows come and go meanwhile; one that is met twice is kept once.
        let found = table
            .iter()
            .map(|entry| entry.map(|(key, flow)| (key.into(), flow.into())));
        let found = found
            .collect::<Result<_, _>>()
            .with_context(|| format!("read table FLOWS_{}", F::SUFFIX))?;
        Ok(flows::rows::<F>(&found, &tables, now))
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl FamilyRow for AffinityRow {
    fn read<F: KernelFamily>(pins: &Pins) -> anyhow::Result<Vec<Self>> {
        let tables = KernelTables::<F>::open(pins, Access::Read)?.read()?;
        let now = flows::now().context("read the clock")?;
        let table = open_affinity::<F>(pins)?;
        // Clients come and go meanwhile, as flows do.
        let found = table
            .iter()
            .map(|entry| entry.map(|(key, value)| (key.into(), value)));
        let found = found
            .collect::<Result<_, _>>()
            .with_context(|| format!("read table AFFINITY_{}", F::SUFFIX))?;
        Ok(affinity::rows::<F>(&found, &tables, now))
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }
}

fn show<R: FamilyRow>(args: &GetArgs, pins: &Pins) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for family in IpFamily::ALL {
        if args.family.is_none_or(|wanted| wanted == family) {
            rows.extend(match family {
                IpFamily::V4 => R::read::<V4>(pins)?,
                IpFamily::V6 => R::read::<V6>(pins)?,
            });
        }
    }
    if let Some(namespace) = &args.namespace {
        rows.retain(|row| row.namespace() == namespace);
    }
    rows.sort();
    render::print(&rows, args.output)
}

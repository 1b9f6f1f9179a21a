//! What the programs counted, as metrics.

use std::{collections::BTreeMap, fmt};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};
use proxy_common::{
    counter::Counter,
    family::{Family as _, V4, V6},
};

use crate::dataplane::{pins::Pins, sweep::Swept};

/// The programs' counters, read whenever metrics are asked for.
pub struct Counters {
    counters: PerCpuArray<MapData, u64>,
    sweeps: Array<MapData, Swept>,
}

impl Counters {
    /// Opens the counters of a loaded datapath.
    pub fn open(pins: &Pins) -> Result<Self, MapError> {
        let open = |name| MapData::from_pin(pins.map(name)).and_then(Map::from_map_data);
        Ok(Self {
            counters: open("COUNTERS")?.try_into()?,
            sweeps: open("SWEEPS")?.try_into()?,
        })
    }

    /// All counters, summed over the CPUs. One that cannot be read is left out.
    pub fn read(&self) -> BTreeMap<&'static str, u64> {
        Counter::ALL
            .iter()
            .filter_map(|counter| {
                let values = self.counters.get(&(*counter as u32), 0).ok()?;
                Some((counter.label(), values.iter().sum()))
            })
            .collect()
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut events = encoder.encode_descriptor(
            "tandem_datapath_events",
            "What the programs in the kernel did, by event",
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (event, count) in self.read() {
            let labels = [("event", event)];
            ConstCounter::new(count).encode(events.encode_family(&labels)?)?;
        }
        let mut flows = encoder.encode_descriptor(
            "tandem_flows",
            "Flows in the table at the last sweep",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for (index, family) in [(0, V4::NAME), (1, V6::NAME)] {
            let Ok(swept) = self.sweeps.get(&index, 0) else {
                continue;
            };
            let labels = [("ip_family", family)];
            ConstGauge::new(i64::from(swept.flows)).encode(flows.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

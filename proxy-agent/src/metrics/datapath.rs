//! What the programs counted, as metrics.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};
use proxy_common::family::{Family as _, V4, V6};

use crate::dataplane::counters::Counters;

/// Reads the programs' counters whenever metrics are asked for.
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
        for (swept, family) in self.swept().into_iter().zip([V4::NAME, V6::NAME]) {
            let Some(swept) = swept else { continue };
            let labels = [("ip_family", family)];
            ConstGauge::new(i64::from(swept.flows)).encode(flows.encode_family(&labels)?)?;
        }
        let mut tuples = encoder.encode_descriptor(
            "tandem_masquerade_ports_in_use",
            "Masquerade ports in use at the last sweep, towards all backends together",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for (swept, family) in self.swept().into_iter().zip([V4::NAME, V6::NAME]) {
            let Some(swept) = swept else { continue };
            let labels = [("ip_family", family)];
            ConstGauge::new(i64::from(swept.reply_tuples))
                .encode(tuples.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

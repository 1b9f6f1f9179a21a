//! The programs' counters as metrics.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use proxy_common::family::{Family as _, V4, V6};

use crate::dataplane::counters::Counters;

/// Names and meanings of the metrics.
pub(super) const EVENTS: [&str; 2] = [
    "tandem_datapath_events",
    "What the programs in the kernel did, by event",
];
pub(super) const FLOWS: [&str; 2] = ["tandem_flows", "Flows in the table at the last sweep"];
pub(super) const REPLY_TUPLES: [&str; 2] = [
    "tandem_masquerade_ports_in_use",
    "Masquerade ports in use at the last sweep, towards all backends together",
];

/// Reads the programs' counters whenever metrics are asked for.
impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let [name, help] = EVENTS;
        let mut events = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (event, count) in self.read() {
            let labels = [("event", event)];
            ConstCounter::new(count).encode(events.encode_family(&labels)?)?;
        }
        let swept = self.swept();
        let flows = swept.map(|swept| swept.map(|swept| swept.flows));
        let reply_tuples = swept.map(|swept| swept.map(|swept| swept.reply_tuples));
        for ([name, help], values) in [(FLOWS, flows), (REPLY_TUPLES, reply_tuples)] {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (value, family) in values.into_iter().zip([V4::NAME, V6::NAME]) {
                let Some(value) = value else { continue };
                let value = ConstGauge::new(i64::from(value));
                value.encode(gauge.encode_family(&[("ip_family", family)])?)?;
            }
        }
        Ok(())
    }
}

//! The metrics that every process exports, under their usual names.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Reads this process's use of memory and processor when asked.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        if let Some(bytes) = resident_memory() {
            let memory = ConstGauge::new(bytes);
            memory.encode(encoder.encode_descriptor(
                "process_resident_memory_bytes",
                "Resident memory",
                None,
                memory.metric_type(),
            )?)?;
        }
        if let Some(seconds) = processor_time() {
            let time = ConstCounter::new(seconds);
            time.encode(encoder.encode_descriptor(
                "process_cpu_seconds",
                "Processor time spent, in user and kernel mode",
                None,
                time.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

fn resident_memory() -> Option<i64> {
    let pages: i64 = fs::read_to_string("/proc/self/statm")
        .ok()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()?;
    pages.checked_mul(sysconf(SysconfVar::PAGE_SIZE).ok()??)
}

fn processor_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the command in parentheses and may hold blanks;
    // utime and stime are the 12th and 13th after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || -> Option<u32> { fields.next()?.parse().ok() };
    let ticks = f64::from(ticks()?) + f64::from(ticks()?);
    let per_second = u32::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(ticks / f64::from(per_second))
}

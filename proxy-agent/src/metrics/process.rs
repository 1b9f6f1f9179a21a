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
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Resident memory",
                resident_memory(),
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory",
                virtual_memory(),
            ),
            (
                "process_open_fds",
                "Open file descriptors",
                open_descriptors(),
            ),
            (
                "process_max_fds",
                "File descriptors that may be open",
                max_descriptors(),
            ),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        if let Some(start) = start_time() {
            let gauge = ConstGauge::new(start);
            gauge.encode(encoder.encode_descriptor(
                "process_start_time_seconds",
                "Time when the process started",
                None,
                gauge.metric_type(),
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
    memory(1)
}

fn virtual_memory() -> Option<i64> {
    memory(0)
}

/// A field of the process's memory in pages, in bytes.
fn memory(field: usize) -> Option<i64> {
    let pages: i64 = fs::read_to_string("/proc/self/statm")
        .ok()?
        .split_whitespace()
        .nth(field)?
        .parse()
        .ok()?;
    pages.checked_mul(sysconf(SysconfVar::PAGE_SIZE).ok()??)
}

fn open_descriptors() -> Option<i64> {
    i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}

fn max_descriptors() -> Option<i64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Seconds since the epoch: those of the boot, and the ticks from there to the start.
fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<f64>().ok()? + ticks(19, 1)?)
}

fn processor_time() -> Option<f64> {
    ticks(11, 2)
}

/// The sum of some fields of the process's state that are times, in seconds. They are
/// counted from behind the command, which is in parentheses and may hold blanks.
fn ticks(first: usize, count: usize) -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    let fields = fields.skip(first).take(count);
    let ticks = fields
        .map(|field| field.parse::<f64>().ok())
        .sum::<Option<f64>>()?;
    let per_second = u32::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(ticks / f64::from(per_second))
}

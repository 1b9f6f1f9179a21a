//! Settings of netfilter's connection tracking, for the flows of others (S82).
//!
//! Tandem's own flows are not tracked there. Who relied on kube-proxy for these settings
//! can have them from here.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tracing::{info, warn};

/// Largest table that is asked for by the number of processors.
const LARGEST: u32 = 1 << 20;
/// Buckets of the table, below /sys.
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// The settings; what is zero or not set stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConntrackConfig {
    pub max_per_core: u32,
    pub min: u32,
    pub tcp_established: Duration,
    pub tcp_close_wait: Duration,
    pub tcp_be_liberal: bool,
    pub udp: Duration,
    pub udp_stream: Duration,
}

/// A setting that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    #[error("there is no {0}: `modprobe nf_conntrack` makes it")]
    Missing(PathBuf),
    #[error(
        "{path} cannot be set to {value}: {source}; in a container, mount the host's folder and name it with --proc-sys"
    )]
    Write {
        path: PathBuf,
        value: u64,
        #[source]
        source: io::Error,
    },
}

impl ConntrackConfig {
    /// Entries of the table, as kube-proxy computes them.
    fn max(&self, processors: u32) -> Option<u32> {
        let scaled = self.max_per_core.saturating_mul(processors);
        (self.max_per_core > 0).then(|| scaled.min(LARGEST).max(self.min))
    }

    /// The sysctls below net/netfilter that are to be set, with their values.
    fn sysctls(&self, processors: u32) -> Vec<(&'static str, u64)> {
        let seconds = |time: Duration| Some(time.as_secs()).filter(|seconds| *seconds > 0);
        let settings = [
            ("nf_conntrack_max", self.max(processors).map(u64::from)),
            (
                "nf_conntrack_tcp_timeout_established",
                seconds(self.tcp_established),
            ),
            (
                "nf_conntrack_tcp_timeout_close_wait",
                seconds(self.tcp_close_wait),
            ),
            (
                "nf_conntrack_tcp_be_liberal",
                self.tcp_be_liberal.then_some(1),
            ),
            ("nf_conntrack_udp_timeout", seconds(self.udp)),
            ("nf_conntrack_udp_timeout_stream", seconds(self.udp_stream)),
        ];
        let set = |(name, value): (_, Option<_>)| Some((name, value?));
        settings.into_iter().filter_map(set).collect()
    }
}

/// Makes the settings below `proc_sys`, usually /proc/sys. Fails with the first one that
/// cannot be made, and makes the others.
pub fn apply(config: &ConntrackConfig, proc_sys: &Path) -> Result<(), ConntrackError> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let processors = u32::try_from(processors).unwrap_or(u32::MAX);
    let mut result = Ok(());
    for (name, value) in config.sysctls(processors) {
        let path = proc_sys.join("net/netfilter").join(name);
        result = result.and(set(&path, value));
        if name == "nf_conntrack_max" {
            // More entries in as many buckets are slower, and nothing else.
            if let Err(error) = grow_buckets(Path::new(BUCKETS), value / 4) {
                warn!("connection tracking has few buckets for {value} entries: {error}");
            }
        }
    }
    result
}

/// Writes a value, unless it is there.
fn set(path: &Path, value: u64) -> Result<(), ConntrackError> {
    let Ok(present) = fs::read_to_string(path) else {
        return Err(ConntrackError::Missing(path.to_owned()));
    };
    if present.trim() == value.to_string() {
        return Ok(());
    }
    fs::write(path, value.to_string()).map_err(|source| ConntrackError::Write {
        path: path.to_owned(),
        value,
        source,
    })?;
    info!(
        "{} is {value} now, it was {}",
        path.display(),
        present.trim()
    );
    Ok(())
}

fn grow_buckets(path: &Path, least: u64) -> io::Result<()> {
    let present = fs::read_to_string(path)?;
    if present
        .trim()
        .parse::<u64>()
        .is_ok_and(|present| present >= least)
    {
        return Ok(());
    }
    fs::write(path, least.to_string())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// kube-proxy's rule: so many for each processor, within two bounds; zero is none.
    #[rstest]
    #[case::none(0, 131_072, 64, None)]
    #[case::few_processors(32_768, 131_072, 1, Some(131_072))]
    #[case::more(32_768, 131_072, 8, Some(262_144))]
    #[case::very_many(32_768, 131_072, 512, Some(1 << 20))]
    #[case::a_larger_minimum(32_768, 1 << 21, 512, Some(1 << 21))]
    fn entries_follow_the_processors(
        #[case] max_per_core: u32,
        #[case] min: u32,
        #[case] processors: u32,
        #[case] expected: Option<u32>,
    ) {
        let config = ConntrackConfig {
            max_per_core,
            min,
            ..ConntrackConfig::default()
        };
        assert_eq!(config.max(processors), expected);
    }

    #[test]
    fn nothing_is_set_that_was_not_asked_for() {
        assert_eq!(ConntrackConfig::default().sysctls(8), []);
        apply(&ConntrackConfig::default(), Path::new("/nowhere")).expect("nothing to do");
    }

    #[test]
    fn settings_are_written_and_failures_say_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let netfilter = folder.path().join("net/netfilter");
        fs::create_dir_all(&netfilter).expect("a folder");
        let close_wait = netfilter.join("nf_conntrack_tcp_timeout_close_wait");
        fs::write(&close_wait, "60\n").expect("a file");
        let mut config = ConntrackConfig {
            tcp_close_wait: Duration::from_hours(1),
            ..ConntrackConfig::default()
        };
        apply(&config, folder.path()).expect("set");
        assert_eq!(fs::read_to_string(&close_wait).expect("a value"), "3600");

        config.udp = Duration::from_mins(2);
        let error = apply(&config, folder.path()).expect_err("not there");
        let error = error.to_string();
        assert!(
            error.contains("nf_conntrack_udp_timeout: `modprobe"),
            "{error}"
        );
    }
}

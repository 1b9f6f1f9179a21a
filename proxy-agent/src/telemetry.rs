//! Log lines: to standard error, as text or as one JSON object each.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt, prelude::*, util::TryInitError};

use crate::cli::{LogArgs, LogFormat};

/// Crates that speak for us: the agent, and the programs in the kernel.
const OURS: [&str; 3] = ["proxy_agent", "proxy_ebpf", "tandem"];

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{filter:?} is neither a log level nor a filter")]
    Filter {
        filter: String,
        #[source]
        source: ParseError,
    },
    #[error("{0:?} is no log level; those are off, error, warn, info, debug and trace")]
    Level(String),
    #[error("cannot start the log")]
    Init(#[from] TryInitError),
}

/// Starts the log of this process, which has lines of `usual` level and above
/// if nobody asked for another.
pub fn init(args: &LogArgs, usual: &str) -> Result<(), LogError> {
    if let Some(word) = args.log_level.as_deref().and_then(unknown_level) {
        return Err(LogError::Level(word.to_owned()));
    }
    let directives = directives(args.log_level.as_deref(), args.verbosity, usual);
    let filter = EnvFilter::try_new(&directives).map_err(|source| LogError::Filter {
        filter: args.log_level.clone().unwrap_or(directives),
        source,
    })?;
    let layer = fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match args.log_format {
        LogFormat::Text => {
            let layer = layer
                .with_ansi(io::stderr().is_terminal())
                .with_target(false);
            registry.with(layer).try_init()?;
        }
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init()?,
    }
    Ok(())
}

/// The most detailed level that is logged, from 1 for errors to 5 for traces:
/// the programs in the kernel need not say more. 0 if nothing is logged.
pub fn level() -> u8 {
    match LevelFilter::current() {
        LevelFilter::OFF => 0,
        LevelFilter::ERROR => 1,
        LevelFilter::WARN => 2,
        LevelFilter::INFO => 3,
        LevelFilter::DEBUG => 4,
        LevelFilter::TRACE => 5,
    }
}

/// A part of a filter that is a mere word but no level: it would be taken for a
/// target, and silence all others.
fn unknown_level(filter: &str) -> Option<&str> {
    let mut words = filter
        .split(',')
        .map(str::trim)
        .filter(|word| !word.contains(['=', '[']));
    words.find(|word| word.parse::<LevelFilter>().is_err())
}

/// The filter for a level and a count of `-v`. A plain level is meant for our
/// own crates; the others may speak up to `info`, and the Kubernetes client,
/// whose errors the agent reports itself, not at all.
fn directives(level: Option<&str>, verbosity: u8, usual: &str) -> String {
    let level = match (level, verbosity) {
        (Some(level), _) => level,
        (None, 0) => usual,
        (None, 1) => "debug",
        (None, _) => "trace",
    };
    let Ok(plain) = level.parse::<LevelFilter>() else {
        return level.to_owned();
    };
    let others = plain.min(LevelFilter::INFO);
    let ours = OURS.map(|target| format!("{target}={plain}")).join(",");
    format!("{others},kube_client=off,{ours}")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        None,
        0,
        "info,kube_client=off,proxy_agent=info,proxy_ebpf=info,tandem=info"
    )]
    #[case(
        None,
        1,
        "info,kube_client=off,proxy_agent=debug,proxy_ebpf=debug,tandem=debug"
    )]
    #[case(
        None,
        2,
        "info,kube_client=off,proxy_agent=trace,proxy_ebpf=trace,tandem=trace"
    )]
    #[case(
        Some("warn"),
        1,
        "warn,kube_client=off,proxy_agent=warn,proxy_ebpf=warn,tandem=warn"
    )]
    #[case(Some("info,kube=debug"), 0, "info,kube=debug")]
    fn a_level_is_meant_for_our_own(
        #[case] level: Option<&str>,
        #[case] verbosity: u8,
        #[case] expected: &str,
    ) {
        let directives = directives(level, verbosity, "info");
        assert_eq!(directives, expected);
        EnvFilter::try_new(directives).expect("a valid filter");
    }

    #[rstest]
    #[case("warn", None)]
    #[case("OFF", None)]
    #[case("info,kube=debug", None)]
    #[case("proxy_agent[span]", None)]
    #[case("warning", Some("warning"))]
    #[case("kube=debug, verbose", Some("verbose"))]
    fn words_are_levels(#[case] filter: &str, #[case] expected: Option<&str>) {
        assert_eq!(unknown_level(filter), expected);
    }

    #[test]
    fn nonsense_is_refused() {
        let args = LogArgs {
            log_level: Some("proxy_agent=loud".to_owned()),
            verbosity: 0,
            log_format: LogFormat::Text,
        };
        let error = init(&args, "info").expect_err("nonsense");
        assert_eq!(
            error.to_string(),
            r#""proxy_agent=loud" is neither a log level nor a filter"#
        );
    }
}

//! Log lines: to standard error, as text or as one JSON object each.

use std::{
    fmt,
    io::{self, IsTerminal},
    sync::OnceLock,
};

use clap::ValueEnum;
use tracing::{field::Field, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter,
    field::MakeExt as _,
    filter::ParseError,
    fmt::{
        FormatFields,
        format::{self, Writer},
        layer,
    },
    prelude::*,
    registry::Registry,
    reload,
    util::TryInitError,
};

use crate::escape::Escaped;

/// Crates that speak for us: the agent, and the programs in the kernel.
const OURS: [&str; 3] = ["proxy_agent", "proxy_ebpf", "tandem"];

/// Options of the process's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Minimum level of log lines, or a filter in the syntax of [`EnvFilter`].
    pub level: Option<String>,
    /// Number of levels to raise the default level by.
    pub verbosity: u8,
    pub format: LogFormat,
}

/// The value of `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// An error setting up the log.
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
    #[error("this process has no log")]
    None,
    #[error("cannot change the log")]
    Change(#[from] reload::Error),
}

/// Starts the log of this process, which has lines of `usual` level and above
/// if nobody asked for another.
pub fn init(config: &LogConfig, usual: &str) -> Result<(), LogError> {
    if let Some(word) = config.level.as_deref().and_then(unknown_level) {
        return Err(LogError::Level(word.to_owned()));
    }
    let directives = directives(config.level.as_deref(), config.verbosity, usual);
    let filter = EnvFilter::try_new(&directives).map_err(|source| LogError::Filter {
        filter: config.level.clone().unwrap_or(directives),
        source,
    })?;
    let layer = layer().with_writer(io::stderr);
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    match config.format {
        LogFormat::Text => {
            let layer = layer
                .fmt_fields(one_line())
                .with_ansi(io::stderr().is_terminal())
                .with_target(false);
            registry.with(layer).try_init()?;
        }
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init()?,
    }
    // The first log is the only one.
    let _ = FILTER.set(handle);
    Ok(())
}

/// The filter of this process's log, while it runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Changes the level or filter of this process's log. That of the programs in the kernel
/// is what it was when they were loaded.
pub fn change(level: &str) -> Result<(), LogError> {
    if let Some(word) = unknown_level(level) {
        return Err(LogError::Level(word.to_owned()));
    }
    let directives = directives(Some(level), 0, level);
    let filter = EnvFilter::try_new(directives).map_err(|source| LogError::Filter {
        filter: level.to_owned(),
        source,
    })?;
    let handle = FILTER.get().ok_or(LogError::None)?;
    Ok(handle.reload(filter)?)
}

/// The level that a verbosity of kube-proxy's log stands for.
pub fn level_of_verbosity(verbosity: u8) -> &'static str {
    match verbosity {
        0..4 => "info",
        4..6 => "debug",
        6.. => "trace",
    }
}

/// The message and the fields of an event, which may quote anything: they are
/// escaped, so that an event is one line and tells the terminal nothing.
fn one_line() -> impl for<'writer> FormatFields<'writer> + 'static {
    let field = |writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        let value = format_args!("{value:?}");
        match field.name() {
            "message" => write!(writer, "{}", Escaped(value)),
            name => write!(writer, "{name}={}", Escaped(value)),
        }
    };
    format::debug_fn(field).delimited(" ")
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
    use std::{
        io::Write,
        path::Path,
        sync::{Arc, Mutex},
    };

    use rstest::rstest;
    use tracing::warn;

    use super::*;
    use crate::model::ObjectKey;

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

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns the log of an event with an object, a kind, a file and an error.
    fn log(text: &str, ansi: bool) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let layer = layer()
            .fmt_fields(one_line())
            .with_ansi(ansi)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let key = ObjectKey::new("default", text);
            let file = Path::new(text).display();
            warn!(object = %key, kind = %text, %file, "error: {text}");
        });
        let bytes = memory.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("text")
    }

    /// P9: whoever names an object cannot write lines of their own.
    #[rstest]
    #[case("evil\nWARN forged", r"evil\nWARN forged")]
    #[case("evil\r\nforged", r"evil\r\nforged")]
    #[case("\u{1b}[2Jgone", r"\u{1b}[2Jgone")]
    #[case("\u{9b}2J\u{2028}", r"\u{9b}2J\u{2028}")]
    fn an_event_is_one_line(#[case] text: &str, #[case] escaped: &str) {
        let line = log(text, false);
        assert_eq!(line.matches(escaped).count(), 4, "{line:?}");
        assert!(line.ends_with('\n'));
        assert!(
            !line
                .trim_end_matches('\n')
                .contains(crate::escape::is_hidden),
            "{line:?}"
        );
        let coloured = log(text, true);
        assert_eq!(coloured.lines().count(), 1, "{coloured:?}");
        assert_eq!(coloured.matches(escaped).count(), 4, "{coloured:?}");
        assert!(
            coloured.contains("\u{1b}["),
            "the colours are left: {coloured:?}"
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let config = LogConfig {
            level: Some("proxy_agent=loud".to_owned()),
            verbosity: 0,
            format: LogFormat::Text,
        };
        let error = init(&config, "info").expect_err("nonsense");
        assert_eq!(
            error.to_string(),
            r#""proxy_agent=loud" is neither a log level nor a filter"#
        );
    }
}

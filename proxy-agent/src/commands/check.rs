//! `proxy-agent check`: tells whether this host can run the proxy, and what is in
//! its way.
//!
//! [`facts`] asks the host; the other modules judge what it said, without IO.

pub mod facts;
pub mod firewall;
pub mod hooks;
pub mod host;
pub mod reach;

use std::{
    fmt,
    io::{self, Write as _},
    process::ExitCode,
};

use crate::{cli::PathArgs, commands::check::facts::Facts, escape::Escaped};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub level: Level,
    /// The observation.
    pub what: String,
    /// The remedy, if something is wrong.
    pub advice: Option<String>,
}

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Ok,
    /// The proxy runs, but some traffic may not.
    Warn,
    /// The proxy cannot run, or cannot work.
    Fail,
}

impl Finding {
    pub fn ok(what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            what: what.into(),
            advice: None,
        }
    }

    pub fn warn(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            what: what.into(),
            advice: Some(advice.into()),
        }
    }

    pub fn fail(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(what, advice)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        write!(f, "{level}  {}", Escaped(&self.what))?;
        match &self.advice {
            Some(advice) => write!(f, ": {advice}"),
            None => Ok(()),
        }
    }
}

/// Checks the host and says what was found on standard output. Fails if any
/// finding does.
pub fn check(paths: &PathArgs) -> ExitCode {
    let findings = evaluate(&Facts::gather(paths));
    let mut output = io::stdout().lock();
    for finding in &findings {
        // Whoever closed standard output still gets the exit code.
        let _ = writeln!(output, "{finding}");
    }
    if findings.iter().any(|finding| finding.level == Level::Fail) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Judges the facts, in the order in which a new host is set up.
pub fn evaluate(facts: &Facts) -> Vec<Finding> {
    let mut findings = host::evaluate(&facts.host);
    findings.extend(reach::evaluate(&facts.reach));
    findings.extend(firewall::evaluate(&facts.firewall));
    findings.extend(hooks::evaluate(&facts.hooks));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_one_line_each() {
        let lines = [
            Finding::ok("all is well"),
            Finding::warn("odd", "look"),
            Finding::fail("broken", "repair it"),
        ];
        assert_eq!(
            lines.map(|finding| finding.to_string()),
            [
                "ok    all is well",
                "warn  odd: look",
                "FAIL  broken: repair it"
            ]
        );
    }
}

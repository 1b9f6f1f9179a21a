//! The report of the tests in the virtual machine, read from its serial port.

use anyhow::{Result, bail, ensure};

/// Prefix of the lines that the init script prints.
const MARK: &str = "::tandem ";
/// Prefix of the lines of tests that the kernel lacks a feature for.
const SKIPPED: &str = "SKIPPED ";

/// The state of the tests, as far as the serial port has told.
#[derive(Debug, Default)]
pub(super) struct Report {
    running: Option<String>,
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
    is_done: bool,
}

/// The meaning of a line for the user.
#[derive(Debug, PartialEq)]
pub(super) enum Line<'a> {
    /// Output of a test.
    Output(&'a str),
    /// The machine is up.
    Up,
    /// A program begins.
    Begins(&'a str),
    /// Nothing to show.
    Noted,
}

impl Report {
    /// Takes a line and says what it means.
    pub(super) fn read<'a>(&mut self, line: &'a str) -> Line<'a> {
        let Some((_, event)) = line.split_once(MARK) else {
            if let Some((_, skipped)) = line.split_once(SKIPPED) {
                self.skipped.push(skipped.to_owned());
            }
            return Line::Output(line);
        };
        let words: Vec<_> = event.split(' ').collect();
        match words[..] {
            ["up"] => Line::Up,
            ["begin", name] => {
                self.running = Some(name.to_owned());
                Line::Begins(name)
            }
            ["end", name, status] => {
                self.running = None;
                if status == "0" {
                    self.passed += 1;
                } else {
                    self.failed.push(format!("{name} (exit status {status})"));
                }
                Line::Noted
            }
            ["done"] => {
                self.is_done = true;
                Line::Noted
            }
            _ => Line::Output(line),
        }
    }

    /// Programs that have ended.
    pub(super) fn ended(&self) -> usize {
        self.passed + self.failed.len()
    }

    /// The program that the machine was busy with.
    pub(super) fn running(&self) -> Option<&str> {
        self.running.as_deref()
    }

    /// Returns whether the machine came to the end of its tests.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Shows the sum of it; fails unless all programs ended well.
    pub(super) fn conclude(self, release: &str) -> Result<()> {
        for skipped in &self.skipped {
            eprintln!("xtask: skipped: {skipped}");
        }
        if !self.is_done {
            let when = self.running.map_or_else(
                || "between tests".to_owned(),
                |name| format!("while {name} ran"),
            );
            bail!("Linux {release} ended {when}");
        }
        ensure!(
            self.failed.is_empty(),
            "under Linux {release} {} of {} test programs failed: {}",
            self.failed.len(),
            self.passed + self.failed.len(),
            self.failed.join(", ")
        );
        eprintln!(
            "xtask: under Linux {release} {} test programs passed; tests skipped: {}",
            self.passed,
            self.skipped.len()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.read(line);
        }
        report
    }

    #[test]
    fn all_programs_passed() {
        let report = report(&[
            "::tandem up",
            "::tandem begin restart",
            "test a ... ok",
            "::tandem end restart 0",
            "::tandem done",
        ]);
        assert_eq!(report.ended(), 1);
        report.conclude("6.1.0").unwrap();
    }

    #[test]
    fn a_program_that_failed_is_named() {
        let report = report(&[
            "::tandem begin restart",
            "half a line::tandem end restart 101",
            "::tandem done",
        ]);
        let error = report.conclude("6.1.0").unwrap_err().to_string();
        assert!(error.contains("restart (exit status 101)"), "{error}");
    }

    #[test]
    fn a_machine_that_ended_early_failed() {
        let report = report(&["::tandem begin restart", "test a ... ok"]);
        let error = report.conclude("6.1.0").unwrap_err().to_string();
        assert!(error.contains("while restart ran"), "{error}");
    }

    #[test]
    fn what_was_skipped_is_kept() {
        let report = report(&["SKIPPED tcx: needs Linux 6.6, this is 6.1"]);
        assert_eq!(report.skipped, ["tcx: needs Linux 6.6, this is 6.1"]);
    }
}

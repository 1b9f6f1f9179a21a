//! Results of tests, as ginkgo reports them.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The result of a test.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    Passed,
    Failed,
    /// It found that the cluster is not one for it.
    Skipped,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) duration: Duration,
    /// The message of a test that did not pass, in one line.
    pub(super) message: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            state,
            duration,
            message,
        } = self;
        write!(f, "{state} {name} ({} s)", duration.as_secs())?;
        if message.is_empty() {
            return Ok(());
        }
        write!(f, ": {message}")
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passes",
            Self::Failed => "fails",
            Self::Skipped => "skips itself",
        })
    }
}

/// The tests of a report that ran, by name.
pub(super) fn read(text: &[u8]) -> Result<Vec<Outcome>> {
    let report: Value =
        serde_json::from_slice(text).context("the report of the tests is no JSON")?;
    let mut outcomes: Vec<_> = list(&report)
        .flat_map(|suite| list(&suite["SpecReports"]))
        .filter_map(outcome)
        .collect();
    outcomes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(outcomes)
}

/// A regular expression that matches these tests and no others.
pub(super) fn focus(outcomes: &[&Outcome]) -> String {
    let names: Vec<_> = outcomes
        .iter()
        .map(|outcome| literal(&outcome.name))
        .collect();
    names.join("|")
}

fn literal(name: &str) -> String {
    name.chars().fold(String::new(), |mut text, c| {
        if !(c.is_alphanumeric() || c == ' ' || c == '-') {
            text.push('\\');
        }
        text.push(c);
        text
    })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Of a test that ran; all others of the program are in the report, too.
fn outcome(spec: &Value) -> Option<Outcome> {
    if spec["LeafNodeType"] != "It" {
        return None;
    }
    let message = spec["Failure"]["Message"].as_str().unwrap_or_default();
    let state = match spec["State"].as_str()? {
        "passed" => State::Passed,
        "skipped" if message.is_empty() => return None,
        "skipped" => State::Skipped,
        "pending" => return None,
        _ => State::Failed,
    };
    let words = list(&spec["ContainerHierarchyTexts"])
        .chain([&spec["LeafNodeText"]])
        .filter_map(Value::as_str);
    Some(Outcome {
        name: words.collect::<Vec<_>>().join(" "),
        state,
        duration: Duration::from_nanos(spec["RunTime"].as_u64().unwrap_or(0)),
        message: first_line(message),
    })
}

fn first_line(message: &str) -> String {
    let line = message.lines().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(text: &str, state: &str, message: &str) -> Value {
        json!({
            "ContainerHierarchyTexts": ["[sig-network] Services"],
            "LeafNodeType": "It",
            "LeafNodeText": text,
            "State": state,
            "RunTime": 1_500_000_000_u64,
            "Failure": {"Message": message},
        })
    }

    #[test]
    fn tests_that_did_not_run_are_left_out() {
        let report = json!([{"SpecReports": [
            spec("should be served", "passed", ""),
            spec("should be elsewhere", "skipped", ""),
            spec("should have zones", "skipped", "\nneeds three zones\nmore"),
            spec("should be fast", "timedout", "too slow"),
            {"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"},
        ]}]);
        let found: Vec<_> = read(report.to_string().as_bytes())
            .unwrap()
            .into_iter()
            .map(|outcome| outcome.to_string())
            .collect();
        let expected = [
            "passes [sig-network] Services should be served (1 s)",
            "fails [sig-network] Services should be fast (1 s): too slow",
            "skips itself [sig-network] Services should have zones (1 s): needs three zones",
        ];
        for line in expected {
            assert!(found.iter().any(|other| other == line), "{found:?}");
        }
        assert_eq!(found.len(), expected.len());
    }

    #[test]
    fn names_are_no_regular_expressions() {
        let outcome = Outcome {
            name: "[sig-network] a (b)".to_owned(),
            state: State::Failed,
            duration: Duration::ZERO,
            message: String::new(),
        };
        assert_eq!(focus(&[&outcome]), r"\[sig-network\] a \(b\)");
    }
}

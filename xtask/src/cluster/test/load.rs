//! Requests that go on while something happens, each counted.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::scene::Scene;
use crate::cluster::place::{OUTSIDE, node_name};

/// What becomes of a connection after a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Connections {
    /// Each request has its own.
    New,
    /// All requests have the same.
    Kept,
}

pub(super) struct Load {
    client: Child,
    file: PathBuf,
    url: String,
    connections: Connections,
}

/// Asks from outside, many times a second, until it is told to end.
pub(super) fn from_outside(scene: &Scene<'_>, url: &str, connections: Connections) -> Result<Load> {
    start(scene, scene.place.at(OUTSIDE, "curl"), url, connections)
}

/// The same from a pod, which the API server has no part in.
pub(super) fn from_pod(
    scene: &Scene<'_>,
    pod: &str,
    url: &str,
    connections: Connections,
) -> Result<Load> {
    let object = scene.get(&format!("pod/{pod}"))?;
    let status = &object["status"]["containerStatuses"][0]["containerID"];
    let container = status
        .as_str()
        .and_then(|id| id.strip_prefix("containerd://"))
        .with_context(|| format!("{pod} has no container"))?;
    let numbers = scene.spec.nodes().map(|(number, _)| number);
    let number = numbers
        .into_iter()
        .find(|number| object["spec"]["nodeName"] == node_name(*number))
        .with_context(|| format!("{pod} is on no node"))?;
    let name = format!("load-{}", label(url, connections));
    let mut command = scene.nodes.enter(number, "ctr")?;
    command
        .args(["--namespace", "k8s.io", "tasks", "exec", "--exec-id", &name])
        .args([container, "curl"]);
    start(scene, command, url, connections)
}

fn start(
    scene: &Scene<'_>,
    mut command: Command,
    url: &str,
    connections: Connections,
) -> Result<Load> {
    let file = scene
        .place
        .file(&format!("log/load-{}", label(url, connections)));
    let log = File::create(&file).context("make a file for answers")?;
    command
        .args(["--silent", "--rate", "20/s", "--max-time", "10"])
        .args(["--output", "/dev/null"])
        .args([
            "--write-out",
            "%{stderr}%{http_code} %{num_connects} %{errormsg}\\n",
        ]);
    if connections == Connections::New {
        command.args(["--header", "Connection: close"]);
    }
    // More than any test waits for.
    command.arg(format!("{url}?[1-100000]"));
    let client = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // It has no buffer.
        .stderr(log)
        .spawn()
        .context("start curl")?;
    let url = url.to_owned();
    Ok(Load {
        client,
        file,
        url,
        connections,
    })
}

fn label(url: &str, connections: Connections) -> String {
    let url: String = url.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{url}-{connections:?}")
}

impl Load {
    /// Returns how many requests were answered so far.
    pub(super) fn answered(&self) -> Result<usize> {
        Ok(count(&self.answers()?).0)
    }

    fn answers(&self) -> Result<String> {
        fs::read_to_string(&self.file).context("read the answers")
    }

    /// Ends it. Fails unless there were this many answers at least, and nothing was
    /// lost.
    pub(super) fn finish(mut self, least: usize) -> Result<()> {
        self.end();
        let (answered, lost) = count(&self.answers()?);
        let Self {
            ref url,
            connections,
            ..
        } = self;
        println!(
            "  {url} ({connections:?}): {answered} answers, {} lost",
            lost.len()
        );
        ensure!(
            lost.is_empty(),
            "{url}: of {} requests these were lost: {lost:?}",
            answered + lost.len()
        );
        ensure!(answered >= least, "{url}: {answered} answers only");
        if connections == Connections::Kept {
            let opened = opened(&self.answers()?);
            ensure!(opened == 1, "{url}: there were {opened} connections");
        }
        Ok(())
    }

    fn end(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

/// Counts answers, and returns what is said of requests without one. The last line
/// may be half written.
fn count(text: &str) -> (usize, Vec<String>) {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let (answered, lost): (Vec<_>, Vec<_>) =
        whole.lines().partition(|line| line.starts_with("200 "));
    (
        answered.len(),
        lost.into_iter().map(str::to_owned).collect(),
    )
}

/// Returns how many connections were made.
fn opened(text: &str) -> u32 {
    text.lines()
        .filter_map(|line| line.split(' ').nth(1)?.parse::<u32>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWERS: &str = "200 1 \n200 0 \n000 1 Connection refused\n503 0 \n200 ";

    #[test]
    fn everything_but_success_is_lost() {
        let (answered, lost) = count(ANSWERS);
        assert_eq!(answered, 2);
        assert_eq!(lost, ["000 1 Connection refused", "503 0 "]);
        assert_eq!(opened(ANSWERS), 2);
    }
}

//! One program of the control plane.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};

use crate::host::Host;

/// Lines of the log that are shown when the program has failed.
const LOG_TAIL: usize = 30;

/// A program running on a host, killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the program on `host`; what it says is added to the file `log`.
    pub fn start(host: &Host, mut command: Command, log: PathBuf) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| log.display().to_string())?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = host.run(|| command.spawn());
        let program = command.get_program().to_string_lossy().into_owned();
        let child = child.with_context(|| format!("{program} cannot be started"))?;
        Ok(Self { child, log })
    }

    /// Fails with the end of its log if the program has ended.
    pub fn ensure_alive(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(
            ended.is_none(),
            "{} has ended ({}):\n{}",
            self.log.display(),
            ended.unwrap_or_default(),
            self.log_tail()
        );
        Ok(())
    }

    /// The end of what it has said.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- end of {}:\n{}", self.log.display(), self.log_tail());
        }
    }
}

//! Processes that outlive the command that starts them.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How long between two looks at whether something has happened.
const PACE: Duration = Duration::from_millis(250);

/// Starts a process in a session of its own, with its output in `log`.
pub(crate) fn start(command: &Command, log: &Path) -> Result<Child> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    let mut session = Command::new("setsid");
    session
        .arg(command.get_program())
        .args(command.get_args())
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("share the log file")?)
        .stderr(file);
    session
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))
}

/// Tries until it succeeds, or fails with the last failure when the time is up.
pub(crate) fn eventually(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > limit => {
                return Err(error)
                    .with_context(|| format!("{what} took more than {} s", limit.as_secs()));
            }
            Err(_) => thread::sleep(PACE),
        }
    }
}

/// Fails if the process has ended.
pub(crate) fn alive(name: &str, child: &mut Child, log: &Path) -> Result<()> {
    if let Some(status) = child
        .try_wait()
        .with_context(|| format!("look at {name}"))?
    {
        bail!("{name} ended, {status}; see {}", log.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_fails_with_the_last_reason() {
        let mut attempts = 0;
        let error = eventually("waiting", Duration::from_millis(300), || {
            attempts += 1;
            bail!("attempt {attempts}")
        })
        .unwrap_err();
        assert!(attempts > 1);
        assert!(
            format!("{error:#}").ends_with(&format!("attempt {attempts}")),
            "{error:#}"
        );
    }
}

//! Runs other programs. Three ways, by who reads the output: [`step`] (a log
//! file), [`foreground`] (the person), [`output`] (the caller).

use std::{
    collections::VecDeque,
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Lines of a failed step's log that are shown.
const TAIL: usize = 30;

/// Prints what begins, runs `work`, prints how long it took.
///
/// Progress goes to standard error: standard output belongs to the program
/// that a verb is about, such as the test runner.
pub(crate) fn timed<T>(label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("xtask: {label} ...");
    let start = Instant::now();
    let value = work().with_context(|| format!("{label} failed"))?;
    eprintln!("xtask: {label}: {}", seconds(start.elapsed()));
    Ok(value)
}

/// Runs a command whose output nobody needs while it succeeds: it is appended
/// to `log`, and only the end of it is shown on failure.
pub(crate) fn step(log: &Path, command: &mut Command) -> Result<()> {
    let file = append(log)?;
    let before = file.metadata().context("measure the log file")?.len();
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("share the log file")?)
        .stderr(file)
        .status()
        .with_context(|| format!("start {}", line(command)))?;
    if !status.success() {
        bail!(
            "{}: {status}; the end of {}:\n{}",
            line(command),
            log.display(),
            tail(log, before)
        );
    }
    Ok(())
}

/// Runs a command in the foreground, with this process's input and output.
pub(crate) fn foreground(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {}", line(command)))?;
    if !status.success() {
        bail!("{}: {status}", line(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed, without the last newline.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", line(command)))?;
    if !output.status.success() {
        bail!(
            "{}: {}: {}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}

/// The file that running `program` would start; also looks in the system
/// folders that are missing from some users' `PATH`.
pub(crate) fn find(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program.as_ref()))
        .find(|file| file.is_file())
}

/// Returns whether this process runs as root.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A duration as people read it: `0.3 s`, `42 s`, `3 min 05 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        whole @ 10..120 => format!("{whole} s"),
        whole => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

fn append(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))
}

/// The last lines of what was logged after the first `before` bytes.
fn tail(log: &Path, before: u64) -> String {
    let text = fs::read(log).unwrap_or_default();
    let start = usize::try_from(before).unwrap_or(0).min(text.len());
    let text = String::from_utf8_lossy(&text[start..]);
    let mut lines = VecDeque::with_capacity(TAIL);
    for line in text.lines() {
        if lines.len() == TAIL {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    Vec::from(lines).join("\n")
}

/// The command as it would be typed.
fn line(command: &Command) -> String {
    let words: Vec<_> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::quick(Duration::from_millis(340), "0.3 s")]
    #[case::below_two_minutes(Duration::from_secs(119), "119 s")]
    #[case::long(Duration::from_secs(185), "3 min 05 s")]
    fn durations_read_well(#[case] duration: Duration, #[case] expected: &str) {
        assert_eq!(seconds(duration), expected);
    }

    #[test]
    fn a_failed_step_shows_the_end_of_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("deep/step.log");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 100; echo the cause >&2; exit 3"]);

        let error = step(&log, &mut command).unwrap_err().to_string();

        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("100\nthe cause"), "{error}");
        assert_eq!(error.lines().count(), 1 + TAIL, "{error}");
    }

    #[test]
    fn output_is_without_the_last_newline() {
        let text = output(Command::new("sh").args(["-c", "echo one; echo two"])).unwrap();
        assert_eq!(text, "one\ntwo");
    }
}

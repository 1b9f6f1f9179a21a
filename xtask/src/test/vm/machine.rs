//! The virtual machine itself.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::report::{Line, Report};
use crate::{exec, setup::Kernel};

/// Room for the root file system twice, while it is unpacked, and for tests.
const MEMORY: &str = "6G";
/// An old one: what newer ones check at each access to memory has to be
/// emulated, too. Without `cmpxchg16b`, after which qemu 7.2 leaves impossible
/// flags: Linux 6.12 died of them in its allocator.
const PROCESSOR: &str = "Nehalem,-cx16";
/// Nothing here needs protection from the programs.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet mitigations=off";
/// As many as find bugs of programs that run at the same time.
const PROCESSORS: &str = "2";
/// A machine that says nothing for so long hangs: each test says when it has
/// ended, and none waits longer for anything.
const SILENCE: Duration = Duration::from_mins(15);
/// Lines of the console that are shown of a machine that ended early.
const TAIL: usize = 30;

/// Boots `kernel` with `root`, shows what its tests say, and returns what
/// became of the `total` programs.
pub(super) fn run(kernel: &Kernel, root: &Path, console: &Path, total: usize) -> Result<Report> {
    let start = Instant::now();
    eprintln!("xtask: boot of Linux {} ...", kernel.release);
    let mut machine = Machine::boot(kernel, root, console)?;
    let output = machine.0.stdout.take().context("qemu has no output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if sender.send(line.trim_end_matches('\r').to_owned()).is_err() {
                return;
            }
        }
    });

    let mut report = Report::default();
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => match report.read(&line) {
                Line::Output(line) => println!("{line}"),
                Line::Up => eprintln!("xtask: boot: {}", exec::seconds(start.elapsed())),
                Line::Begins(name) => eprintln!(
                    "xtask: {name} ({} of {total}, after {})",
                    report.ended() + 1,
                    exec::seconds(start.elapsed())
                ),
                Line::Noted => {}
            },
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => bail!(
                "the virtual machine has said nothing for {}, {}; the end of {}:\n{}",
                exec::seconds(SILENCE),
                report.running().unwrap_or("outside of tests"),
                console.display(),
                tail(console)
            ),
        }
    }
    if !report.is_done() {
        eprintln!(
            "xtask: the end of {}:\n{}",
            console.display(),
            tail(console)
        );
    }
    Ok(report)
}

/// qemu, killed on drop.
struct Machine(Child);

impl Machine {
    fn boot(kernel: &Kernel, root: &Path, console: &Path) -> Result<Self> {
        // Killed with this process: a machine that nobody reads is of no use.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-accel", "tcg,thread=multi", "-cpu", PROCESSOR])
            .args(["-m", MEMORY, "-smp", PROCESSORS])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(kernel.image())
            .arg("-initrd")
            .arg(root)
            .args(["-append", COMMAND_LINE])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        qemu.spawn().map(Self).context("start qemu")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tail(console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

//! The root file system of the virtual machine: tools of this machine with the libraries
//! they load, modules of the other kernel, the agent, the test programs, and
//! the first process, which runs them.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{archive::Archive, programs::Program};
use crate::{cache::Cache, exec, libraries, setup::Kernel, workspace};

/// Programs that tests and agent start. All others come from busybox.
const TOOLS: [&str; 14] = [
    "bridge",
    "conntrack",
    "ethtool",
    "ip",
    "ip6tables",
    "ip6tables-save",
    "iptables",
    "iptables-save",
    "modprobe",
    "nft",
    "ping",
    "sysctl",
    "tc",
    "wg",
];
/// Files and folders that the tools read while they run.
const DATA: [&str; 5] = [
    "/etc/group",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/services",
    "/usr/lib/x86_64-linux-gnu/xtables",
];
/// The corpus of the fuzz tests, below the workspace there and here.
const CORPUS: &str = "proxy-tests/corpus";
/// Folders of the modules that tests may cause the kernel to load.
const MODULES: [&str; 5] = ["arch", "crypto", "drivers/net", "lib", "net"];
/// Drivers of hardware, the largest part of the modules.
const HARDWARE: [&str; 4] = ["ethernet", "hyperv", "wireless", "wwan"];
const INIT: &str = include_str!("init.sh");

/// Paths at which the init script looks for them.
const AGENT: &str = "/opt/proxy-agent";
const BPFTOOL: &str = "/opt/bpftool";
const TESTS: &str = "/opt/tests";
const RUN: &str = "/opt/run.sh";

/// The root file system of one run.
pub(super) struct Root<'a> {
    pub(super) cache: &'a Cache,
    pub(super) kernel: &'a Kernel,
    pub(super) agent: &'a Path,
    pub(super) programs: &'a [Program],
    pub(super) arguments: &'a [OsString],
}

impl Root<'_> {
    /// Writes it as an archive for the kernel.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut image = Image {
            archive: Archive::new(BufWriter::new(file))?,
        };
        image.archive.file("/init", INIT.as_bytes())?;
        image.archive.link("/usr/bin/sh", "busybox")?;
        image.program(
            &exec::find("busybox").context("busybox is missing")?,
            "/bin/busybox",
        )?;
        for tool in TOOLS {
            let file = exec::find(tool).with_context(|| format!("{tool} is missing"))?;
            image.program(&file, &format!("/usr/sbin/{tool}"))?;
        }
        for path in DATA.map(Path::new) {
            if path.exists() {
                image.copy(path, path)?;
            }
        }
        let corpus = workspace::root().join(CORPUS);
        image.copy(&corpus, &corpus)?;
        self.modules(&mut image)?;
        image.program(&self.cache.bin().join("bpftool"), BPFTOOL)?;
        image.stripped(self.agent, AGENT)?;
        for program in self.programs {
            image.stripped(&program.file, &format!("{TESTS}/{}", program.name))?;
        }
        image.archive.file(RUN, self.script().as_bytes())?;
        image.archive.finish()?;
        Ok(())
    }

    fn modules(&self, image: &mut Image) -> Result<()> {
        let from = self.kernel.modules();
        let to = Path::new("/lib/modules").join(&self.kernel.release);
        for entry in files(&from)? {
            // Tables of depmod.
            if entry.is_file() {
                image.copy(&entry, &to.join(entry.file_name().unwrap_or_default()))?;
            }
        }
        for part in MODULES.map(|part| Path::new("kernel").join(part)) {
            image.copy(&from.join(&part), &to.join(&part))?;
        }
        Ok(())
    }

    /// Starts one program after the other.
    fn script(&self) -> String {
        let arguments: Vec<_> = self
            .arguments
            .iter()
            .map(|argument| quoted(&argument.to_string_lossy()))
            .collect();
        let arguments = arguments.join(" ");
        let lines = self
            .programs
            .iter()
            .map(|Program { name, .. }| format!("run {} {arguments}\n", quoted(name)));
        lines.collect()
    }
}

/// An argument for the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

struct Image {
    archive: Archive<BufWriter<File>>,
}

impl Image {
    /// Adds a program with the libraries it is linked with.
    fn program(&mut self, file: &Path, to: &str) -> Result<()> {
        self.copy(file, Path::new(to))?;
        self.libraries(file)
    }

    /// [`Image::program`] without what only a debugger reads: it has to fit
    /// into memory, with all the others.
    fn stripped(&mut self, file: &Path, to: &str) -> Result<()> {
        let aside = workspace::target().join("vm/stripped");
        exec::output(Command::new("strip").arg("-o").arg(&aside).arg(file))?;
        self.copy(&aside, Path::new(to))?;
        fs::remove_file(&aside).with_context(|| format!("remove {}", aside.display()))?;
        self.libraries(file)
    }

    fn libraries(&mut self, program: &Path) -> Result<()> {
        for library in libraries::of(program) {
            self.copy(&library, &library)?;
        }
        Ok(())
    }

    /// Adds a file, or a folder but for drivers of hardware.
    fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        if self.archive.has(to) {
            return Ok(());
        }
        if from.is_dir() {
            for entry in files(from)? {
                let name = entry.file_name().unwrap_or_default();
                if !HARDWARE.iter().any(|left_out| *left_out == name) {
                    self.copy(&entry, &to.join(name))?;
                }
            }
            return Ok(());
        }
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.archive.file(to, &bytes)?;
        Ok(())
    }
}

/// Returns the paths in a folder, in order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("read {}", folder.display()))?;
    let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_reach_the_programs_as_they_were() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}

//! The images that pods of a cluster are made of: built from scratch, of
//! programs that this machine has or that were built here. Nothing is pulled.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::programs::{self, COREDNS};
use crate::{
    cache::{self, Cache},
    exec,
    image::{
        self,
        archive::{self, Settings},
    },
    libraries,
    setup::{self, kubernetes::KUBERNETES},
};

/// Holds a pod's namespaces.
pub(crate) const PAUSE: &str = "localhost/pause:1";
/// Kubernetes' program for tests, among tools for the network.
pub(crate) const AGNHOST: &str = "localhost/agnhost:1";
/// The tools without it.
pub(crate) const TOOLS: &str = "localhost/tools:1";
/// A small shell, and a web server.
pub(crate) const BUSYBOX: &str = "localhost/busybox:1";
/// The web server, serving.
pub(crate) const WEB: &str = "localhost/web:1";
/// Kubernetes' program that looks for a fault of connection tracking.
pub(crate) const REGRESSION: &str = "localhost/regression:1";
/// Debian's NGINX, which reads `/etc/nginx/nginx.conf`.
pub(crate) const NGINX: &str = "localhost/nginx:1";
pub(crate) const COREDNS_IMAGE: &str = "localhost/coredns:1";

/// Raised whenever images of the same programs are to be made anew.
const REVISION: u8 = 5;

/// The programs that tests start in a container besides busybox's. The first one is the
/// shell, because busybox's prefers its own programs to all others.
const PROGRAMS: [&str; 18] = [
    "bash",
    "conntrack",
    "curl",
    "dig",
    "getent",
    "ip",
    "ip6tables",
    "ip6tables-save",
    "iptables",
    "iptables-save",
    "jq",
    "nc",
    "nft",
    "ping",
    "ss",
    "sysctl",
    "tc",
    "wget",
];
/// Files that those read while they run.
const DATA: [&str; 2] = ["/etc/protocols", "/usr/lib/x86_64-linux-gnu/xtables"];

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// A whole program: sleeps until it is told to end, and takes note of the end
/// of processes that are nobody's.
const PAUSE_SOURCE: &str = r"
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, NULL, WNOHANG) > 0) {} }

int main(void) {
    struct sigaction ends = {.sa_handler = end};
    struct sigaction reaps = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
    if (sigaction(SIGINT, &ends, NULL) || sigaction(SIGTERM, &ends, NULL)
        || sigaction(SIGCHLD, &reaps, NULL)) return 1;
    for (;;) pause();
}
";

/// Returns the folder with the archives, which it makes if it is not there.
pub(crate) fn ensure(cache: &Cache, kubernetes: &Path, coredns: &Path) -> Result<PathBuf> {
    let name = format!("node-images-{REVISION}-coredns-{}", COREDNS.version);
    if cache.folder(&name).exists() {
        return Ok(cache.folder(&name));
    }
    exec::timed("images for pods", || {
        let server = setup::nginx(cache)?;
        let folder = cache.assemble(&name, |folder| make(folder, kubernetes, coredns, &server))?;
        eprintln!("xtask: the images take {}", programs::size(&folder)?);
        Ok(folder)
    })
}

/// Makes the agent's image in `folder`, with the libraries that it needs.
pub(crate) fn agent(agent: &Path, tag: &str, folder: &Path) -> Result<()> {
    let root = folder.join("tandem");
    cache::remove(&root)?;
    cache::create(&root)?;
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(root.join("proxy-agent")).arg(agent);
    exec::output(&mut strip)?;
    for library in libraries::of(agent) {
        place(&root, &library, &library)?;
    }
    archive::write(&root, &image::settings()?, tag, &folder.join("tandem.tar"))?;
    cache::remove(&root)
}

/// Returns the archives that end-to-end tests need besides, made if need be.
pub(crate) fn end_to_end(cache: &Cache, kubernetes: &Path) -> Result<Vec<PathBuf>> {
    let name = format!("end-to-end-images-{REVISION}-{KUBERNETES}");
    let folder = cache.assemble(&name, |folder| {
        let root = folder.join("root");
        let program = "regression-issue-74839";
        programs::copy(&kubernetes.join(program), &root.join(program))?;
        let settings = settings(&["/regression-issue-74839"], &[], None);
        archive::write(&root, &settings, REGRESSION, &folder.join("regression.tar"))?;
        cache::remove(&root)
    })?;
    Ok(vec![folder.join("regression.tar")])
}

fn make(folder: &Path, kubernetes: &Path, coredns: &Path, server: &Path) -> Result<()> {
    let root = folder.join("root");
    let image = |name: &str, tag: &str, settings: Settings| {
        archive::write(&root, &settings, tag, &folder.join(format!("{name}.tar")))
    };
    let empty = || {
        cache::remove(&root)?;
        cache::create(&root)
    };

    empty()?;
    pause(folder, &root)?;
    image("pause", PAUSE, settings(&["/pause"], &[], None))?;

    empty()?;
    programs::copy(&coredns.join("coredns"), &root.join("coredns"))?;
    image("coredns", COREDNS_IMAGE, settings(&["/coredns"], &[], None))?;

    empty()?;
    let busybox = exec::find("busybox").context("busybox is missing")?;
    small(&root, &busybox)?;
    image("busybox", BUSYBOX, settings(&[], &["sh"], Some("/bin")))?;
    let serve = ["httpd", "-f", "-p", "80", "-h", "/www"];
    image("web", WEB, settings(&[], &serve, Some("/bin")))?;

    empty()?;
    nginx(&root, server)?;
    let run = ["/nginx", "-g", "daemon off;", "-c", "/etc/nginx/nginx.conf"];
    image("nginx", NGINX, settings(&run, &[], None))?;

    empty()?;
    tools(&root, &busybox)?;
    let path = Some("/usr/sbin:/usr/bin:/sbin:/bin");
    image("tools", TOOLS, settings(&[], &["sh"], path))?;

    programs::copy(&kubernetes.join("agnhost"), &root.join("agnhost"))?;
    symlink("agnhost", root.join("agnhost-2")).context("link agnhost")?;
    certificates(&root)?;
    image(
        "agnhost",
        AGNHOST,
        settings(&["/agnhost"], &["pause"], path),
    )?;
    cache::remove(&root)
}

fn settings(entrypoint: &[&str], command: &[&str], path: Option<&str>) -> Settings {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Settings {
        entrypoint: owned(entrypoint),
        command: owned(command),
        environment: path.iter().map(|path| format!("PATH={path}")).collect(),
    }
}

fn pause(folder: &Path, root: &Path) -> Result<()> {
    let source = folder.join("pause.c");
    fs::write(&source, PAUSE_SOURCE).context("write the source of pause")?;
    let mut compiler = Command::new("cc");
    compiler
        .args(["-Os", "-static", "-s", "-o"])
        .arg(root.join("pause"))
        .arg(&source);
    exec::output(&mut compiler)?;
    fs::remove_file(&source).context("remove the source of pause")
}

/// A root of busybox alone.
fn small(root: &Path, busybox: &Path) -> Result<()> {
    for folder in ["bin", "etc", "tmp", "www"] {
        cache::create(&root.join(folder))?;
    }
    place(root, busybox, Path::new("/bin/busybox"))?;
    applets(busybox, &root.join("bin"))?;
    users(root)?;
    write(root, "www/index.html", "ok\n")
}

/// A root of NGINX alone, which wants to know what users there are.
fn nginx(root: &Path, program: &Path) -> Result<()> {
    for folder in ["etc/nginx", "tmp", "var/log/nginx"] {
        cache::create(&root.join(folder))?;
    }
    place(root, program, Path::new("/nginx"))?;
    users(root)?;
    write(root, "etc/nsswitch.conf", "hosts: files dns\n")
}

/// A root of this machine's tools.
fn tools(root: &Path, busybox: &Path) -> Result<()> {
    for folder in [
        "etc",
        "proc",
        "sys",
        "dev",
        "root",
        "run",
        "tmp",
        "uploads",
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "usr/sbin",
        "var/log",
    ] {
        cache::create(&root.join(folder))?;
    }
    for link in ["bin", "lib", "lib64", "sbin"] {
        symlink(format!("usr/{link}"), root.join(link)).with_context(|| format!("link {link}"))?;
    }
    for folder in ["tmp", "uploads"] {
        fs::set_permissions(root.join(folder), fs::Permissions::from_mode(0o1777))
            .with_context(|| format!("let all write to {folder}"))?;
    }
    for name in PROGRAMS {
        let program = exec::find(name).with_context(|| format!("{name} is missing"))?;
        place(root, &program, &Path::new("/usr/bin").join(name))?;
    }
    symlink("bash", root.join("usr/bin/sh")).context("link sh")?;
    place(root, busybox, Path::new("/usr/bin/busybox"))?;
    applets(busybox, &root.join("usr/bin"))?;
    for data in DATA.map(Path::new).into_iter().filter(|path| path.exists()) {
        let mut copy = Command::new("cp");
        copy.args(["--archive", "--dereference", "--parents"])
            .arg(data)
            .arg(root);
        exec::output(&mut copy)?;
    }
    users(root)?;
    write(root, "etc/nsswitch.conf", "hosts: files dns\n")
}

/// Links for all that busybox can do and no other program does.
fn applets(busybox: &Path, folder: &Path) -> Result<()> {
    for name in exec::output(Command::new(busybox).arg("--list"))?.lines() {
        let link = folder.join(name);
        if !link.exists() {
            symlink("busybox", &link).with_context(|| format!("link {name}"))?;
        }
    }
    Ok(())
}

fn users(root: &Path) -> Result<()> {
    write(root, "etc/passwd", PASSWD)?;
    write(root, "etc/group", GROUP)
}

/// Writes the certificate that agnhost's server for TLS shows, which comes with its source.
fn certificates(root: &Path) -> Result<()> {
    let modules = exec::output(Command::new("go").args(["env", "GOMODCACHE"]))?;
    let source = Path::new(&modules)
        .join(format!("k8s.io/kubernetes@v{KUBERNETES}"))
        .join("test/images/agnhost/porter");
    for name in ["localhost.crt", "localhost.key"] {
        let file = source.join(name);
        if file.exists() {
            programs::copy(&file, &root.join(name))?;
        }
    }
    Ok(())
}

/// Puts a program into a root, and the libraries that it is linked with.
fn place(root: &Path, program: &Path, to: &Path) -> Result<()> {
    for (from, to) in libraries::of(program)
        .iter()
        .map(|library| (library.as_path(), library.as_path()))
        .chain([(program, to)])
    {
        let inside = root.join(to.strip_prefix("/").unwrap_or(to));
        if !inside.exists() {
            programs::copy(from, &inside)?;
        }
    }
    Ok(())
}

fn write(root: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(root.join(name), text).with_context(|| format!("write {name}"))
}

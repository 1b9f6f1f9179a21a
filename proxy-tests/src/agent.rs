//! The agent under test, as a process on a node.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proxy_agent::dataplane::{counters::Counters, pins::Pins};
use proxy_common::counter::Counter;

use crate::{
    addressing::cluster_cidr, capabilities, family::Family, host::Host, lab::Lab, node::Node,
    poll::eventually,
};

/// The agent's log line when one family's tables are complete for the first
/// time.
const READY: &str = "first sync done";
/// Debug builds on a busy machine are slow to load programs.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// A clean end waits for nothing but system calls.
const EXIT_LIMIT: Duration = Duration::from_secs(30);
/// kube-proxy's port for metrics.
const METRICS_PORT: u16 = 10249;
/// Tables for a handful of Services: making the usual ones would take longer
/// than most tests.
const FEW_SERVICE_PORTS: u32 = 1024;
const FEW_ENDPOINTS: u32 = 4096;
/// Flows of a test that does not make thousands of them.
const FEW_FLOWS: u32 = 16_384;
/// Flows of a test that makes as many as it can, for some seconds.
const MANY_FLOWS: u32 = 262_144;
/// Lines of the log a failed test shows.
const LOG_TAIL: usize = 60;

/// The source of the agent's objects.
#[derive(Clone, Debug, Default)]
pub enum Source {
    /// The lab's directory of manifests.
    #[default]
    Manifests,
    /// An API server.
    Kubeconfig(PathBuf),
}

/// The processes whose calls the socket programs translate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sockets {
    /// All processes'.
    All,
    /// The host's own.
    Host,
    /// Nobody's: everything goes by the packet path.
    #[default]
    Off,
}

impl Sockets {
    fn argument(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Host => "host",
            Self::Off => "off",
        }
    }
}

/// The options of an agent. The defaults are those of an installation,
/// but for the socket LB: tests say when they mean that.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub source: Source,
    pub sockets: Sockets,
    /// Flows at the same time, of each family.
    pub flow_table_size: u32,
    pub max_service_ports: u32,
    pub max_endpoints: u32,
    /// Whether tables of Services have these sizes only at first.
    pub tables_may_grow: bool,
    /// More command line arguments, such as `--attach clsact`.
    pub arguments: Vec<String>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            source: Source::default(),
            sockets: Sockets::default(),
            flow_table_size: FEW_FLOWS,
            max_service_ports: FEW_SERVICE_PORTS,
            max_endpoints: FEW_ENDPOINTS,
            tables_may_grow: false,
            arguments: Vec::new(),
        }
    }
}

impl AgentOptions {
    /// The default with room for as many flows as a test can make.
    pub fn for_many_flows() -> Self {
        Self {
            flow_table_size: MANY_FLOWS,
            ..Self::default()
        }
    }

    /// The default with calls translated for these.
    pub fn with_sockets(sockets: Sockets) -> Self {
        Self {
            sockets,
            ..Self::default()
        }
    }

    /// The default with these arguments besides.
    pub fn with(arguments: &[&str]) -> Self {
        let arguments = arguments
            .iter()
            .map(|&argument| argument.to_owned())
            .collect();
        Self {
            arguments,
            ..Self::default()
        }
    }
}

/// A running agent; killed on drop, when it also shows its log if the test
/// failed.
#[derive(Debug)]
pub struct Agent<'lab> {
    node: &'lab Node,
    process: Child,
    log: PathBuf,
    metrics: SocketAddr,
}

impl<'lab> Agent<'lab> {
    /// Starts the agent on `node` and does not wait.
    pub fn start(node: &'lab Node, lab: &'lab Lab, options: &AgentOptions) -> Result<Self> {
        Self::start_by(node, lab, || Self::command(node, lab, options))
    }

    /// [`Agent::start`] with a command that is made on a thread of the node,
    /// which may be prepared: the agent inherits what it may do and see.
    pub fn start_by(
        node: &'lab Node,
        lab: &'lab Lab,
        prepare: impl FnOnce() -> Result<Command> + Send,
    ) -> Result<Self> {
        static STARTS: AtomicU32 = AtomicU32::new(0);
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        let log = lab
            .scratch
            .path()
            .join(format!("{}-agent-{start}.log", node.name()));
        let process = node.run(|| {
            let output = File::create(&log).with_context(|| log.display().to_string())?;
            let mut command = prepare()?;
            // They tell tests where tools are, and an agent names variables that it does
            // not know.
            for name in ["TANDEM_TOOLS", "TANDEM_CACHE", "TANDEM_PATIENCE"] {
                command.env_remove(name);
            }
            command
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output)
                .spawn()
                .context("the agent cannot be started")
        })?;
        Ok(Self {
            node,
            process,
            log,
            metrics: metrics_address(node),
        })
    }

    /// Returns the command that [`Agent::start`] runs.
    pub fn command(node: &Node, lab: &Lab, options: &AgentOptions) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.arg("run");
        match &options.source {
            Source::Manifests => command.arg("--manifests").arg(lab.manifests.path()),
            Source::Kubeconfig(path) => command.arg("--kubeconfig").arg(path),
        };
        let metrics = metrics_address(node).to_string();
        let [service_ports, endpoints] = if options.tables_may_grow {
            ["--initial-service-ports", "--initial-endpoints"]
        } else {
            ["--max-service-ports", "--max-endpoints"]
        };
        command
            .args(roots(node))
            .args(["--hostname-override", node.name()])
            .arg("--state-dir")
            .arg(state_dir(node, lab))
            .args(["--cluster-cidr", &cluster_cidrs(node)])
            .args(["--metrics-bind-address", &metrics])
            .args([service_ports, &options.max_service_ports.to_string()])
            .args([endpoints, &options.max_endpoints.to_string()])
            .args(["--flow-table-size", &options.flow_table_size.to_string()])
            .args(["--sockets", options.sockets.argument()])
            .args(&options.arguments);
        Ok(command)
    }

    /// Waits until everything in its source is in force, in both families.
    pub fn wait_ready(&self) -> Result<()> {
        eventually("agent is ready", READY_LIMIT, || {
            ensure!(self.is_alive(), "it has ended:\n{}", self.log_tail());
            let families = self.log().matches(READY).count();
            ensure!(
                families == Family::BOTH.len(),
                "not yet:\n{}",
                self.log_tail()
            );
            Ok(())
        })
    }

    /// The node it runs on.
    pub fn node(&self) -> &'lab Node {
        self.node
    }

    /// Everything it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The body of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        self.node.run(|| http_get(self.metrics, "/metrics"))
    }

    /// Succeeds if it says that it is ready.
    pub fn ask_ready(&self) -> Result<()> {
        self.node
            .run(|| http_get(self.metrics, "/readyz"))
            .map(drop)
    }

    /// Returns one of the datapath's counters, as the agent's metrics have it.
    pub fn counted(&self, event: &str) -> Result<u64> {
        let name = format!("tandem_datapath_events_total{{event=\"{event}\"}} ");
        let metrics = self.metrics()?;
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        let count = line.with_context(|| format!("no counter {event} in:\n{metrics}"))?;
        Ok(count.parse()?)
    }

    /// Its memory that is in use, in KiB.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let size = size.and_then(|size| size.split_whitespace().next());
        Ok(size.context("no VmRSS in its status")?.parse()?)
    }

    /// The time that it has had a CPU.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // After the name, which may have any character.
        let (_, stat) = stat.rsplit_once(") ").context("no stat of a process")?;
        let mut ticks = stat.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let ticks = ticks.by_ref().sum::<Result<u64, _>>()?;
        // Linux shows every program 100 ticks a second.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Ends it as a crash would, at once.
    pub fn crash(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Asks it to end with SIGTERM and waits until it has.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        kill(pid(&self.process), Signal::SIGTERM)?;
        eventually("agent ends after SIGTERM", EXIT_LIMIT, || {
            self.process.try_wait()?.context("it is still running")
        })
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> Result<ExitStatus> {
        eventually("agent ends by itself", EXIT_LIMIT, || {
            self.process.try_wait()?.context("it is still running")
        })
    }

    fn is_alive(&self) -> bool {
        // A zombie still has a directory below /proc, but no command line.
        let cmdline = format!("/proc/{}/cmdline", self.process.id());
        fs::read(cmdline).is_ok_and(|arguments| !arguments.is_empty())
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- agent on {} said:\n{}",
                self.node.name(),
                self.log_tail()
            );
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs `proxy-agent get`, `check` or `cleanup` on `node` and returns what it
/// printed; its pins and cgroup are added to the arguments.
pub fn command(node: &Node, arguments: &[&str]) -> Result<String> {
    let output = output(node, arguments, || Ok(()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "proxy-agent {arguments:?}: {}: {said}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs it and returns all that it shows, what is beside the output first.
pub fn shown(node: &Node, arguments: &[&str]) -> Result<String> {
    let output = output(node, arguments, || Ok(()))?;
    let shown = [output.stderr, output.stdout].concat();
    Ok(String::from_utf8_lossy(&shown).into_owned())
}

/// [`command`] with the capabilities of the `DaemonSet`'s container, to which
/// the kernel does not tell what others have loaded.
pub fn command_in_container(node: &Node, arguments: &[&str]) -> Result<Output> {
    output(node, arguments, capabilities::drop_sys_admin)
}

/// Returns the output of the agent, started on a thread after `prepare`.
fn output(node: &Node, arguments: &[&str], prepare: fn() -> Result<()>) -> Result<Output> {
    node.run(|| {
        prepare()?;
        let mut command = Command::new(binary()?);
        command
            .args(arguments)
            .args(["--bpf-root"])
            .arg(node.pins().path());
        if arguments.first() == Some(&"cleanup") {
            command.arg("--cgroup-root").arg(node.cgroup().path());
        }
        command.output().context("the agent cannot be started")
    })
}

/// Flows that the packet path has opened on a node so far, also the ones that
/// have ended and left the tables since, and those of earlier agents.
pub fn flows_opened(node: &Node) -> Result<u64> {
    let counters = Counters::open(&Pins::new(node.pins().path()))?;
    Ok(counters.of(Counter::FlowCreated))
}

/// Flows that are in the tables of a node now.
pub fn flows(node: &Node) -> Result<usize> {
    let flows = command(node, &["get", "flows", "-o", "json"])?;
    let flows: serde_json::Value = serde_json::from_str(&flows)?;
    Ok(flows.as_array().context("flows are an array")?.len())
}

/// `$PROXY_AGENT_BIN`, else the one built beside this test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PROXY_AGENT_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let beside = test
        .ancestors()
        .nth(2)
        .map(|profile| profile.join("proxy-agent"));
    match beside {
        Some(path) if path.exists() => Ok(path),
        _ => bail!("PROXY_AGENT_BIN does not name the agent, and none is built"),
    }
}

/// The folder for an agent's last known state.
pub fn state_dir(node: &Node, lab: &Lab) -> PathBuf {
    lab.scratch.path().join(format!("{}-state", node.name()))
}

fn roots(node: &Node) -> [PathBuf; 4] {
    let pins = node.pins().path().to_owned();
    [
        PathBuf::from("--bpf-root"),
        pins,
        PathBuf::from("--cgroup-root"),
        node.cgroup().path().to_owned(),
    ]
}

fn cluster_cidrs(node: &Host) -> String {
    let cidrs: Vec<_> = node
        .addresses()
        .list()
        .into_iter()
        .map(|address| cluster_cidr(Family::of(address)))
        .collect();
    cidrs.join(",")
}

/// The agent's port for metrics, on the loopback of a family the node has.
fn metrics_address(node: &Host) -> SocketAddr {
    let loopback: IpAddr = match node.addresses().v4 {
        Some(_) => Ipv4Addr::LOCALHOST.into(),
        None => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(loopback, METRICS_PORT)
}

fn pid(process: &Child) -> Pid {
    Pid::from_raw(process.id().cast_signed())
}

/// The body of an HTTP resource; one request does not need a client library.
fn http_get(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
    Ok(body.to_owned())
}

//! The directory of a torture, with the database, the config, the logs of the engines and the
//! records of the agents; and the processes that belong to it.
//!
//! Always: every process that is started carries the mark of the directory, and creates its temporary files in it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::gateway::TOKEN;
use super::protocol::Protocol;
use super::run::{POLL_INTERVAL, Plan};
use super::{AGENT, processes};
use mainstay::config::Config;

/// The lease of the engines: the shortest allowed, so that an engine can be stopped for longer than that.
pub(super) const LEASE: Duration = Duration::from_secs(1);
/// Once the engines have stopped, their processes and files are gone within this time.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where OpenClaw's gateways listen.
const GATEWAY_PORT: u16 = 18789;

/// A torture's directory and what belongs to it.
pub(super) struct Workdir {
    pub(super) dir: PathBuf,
    mainstay: PathBuf,
    agent: PathBuf,
    /// Where the gateway listens.
    gateway: SocketAddr,
}

impl Workdir {
    /// Creates the directory, with a config in it.
    pub(super) fn create(plan: &Plan) -> anyhow::Result<Self> {
        let parent = plan.dir.canonicalize().with_context(|| format!("failed to find {}", plan.dir.display()))?;
        let dir = parent.join(format!("torture-{}-{}", plan.seed, std::process::id()));
        let workdir = Self { dir, mainstay: plan.mainstay.clone(), agent: plan.agent.clone(), gateway: own_address() };
        for dir in [workdir.dir.clone(), workdir.records(), workdir.temp()] {
            fs::create_dir(&dir).with_context(|| format!("failed to make {}", dir.display()))?;
        }
        fs::write(workdir.config(), workdir.config_text(plan.sessions))?;
        Ok(workdir)
    }

    /// Timeouts are short, so that much happens; slots are fewer than sessions, so that idle ones are reclaimed.
    fn config_text(&self, sessions: usize) -> String {
        // A JSON string is a TOML string.
        let quoted = |path: &Path| Value::from(path.display().to_string());
        let (agent, records, dir) = (quoted(&self.agent), quoted(&self.records()), quoted(&self.dir));
        let agents: String = AGENTS.iter().map(|kind| kind.text(&agent, &records, self.gateway)).collect();
        let backends = max_backends(sessions);
        let (lease, slots) = (LEASE.as_secs(), sessions.div_ceil(3) * 2);
        format!(
            r#"[engine]
lease = "{lease}s"
sweep_interval = "1s"
shutdown_grace = "300ms"
idle_ttl = "500ms"
max_backends = {backends}

{agents}
[workspaces.default]
agent = "torture-openclaw"
slots = {slots}
dir = {dir}
"#
        )
    }

    pub(super) fn load_config(&self) -> anyhow::Result<Config> {
        Ok(Config::load(&fs::read_to_string(self.config())?, &self.config(), &self.dir)?)
    }

    pub(super) fn database(&self) -> PathBuf {
        self.dir.join("m.db")
    }

    /// The file from which the engines' clients read the token.
    pub(super) fn token_file(&self) -> PathBuf {
        self.dir.join("m.db-token")
    }

    pub(super) fn records(&self) -> PathBuf {
        self.dir.join("records")
    }

    pub(super) fn log(&self, engine: usize) -> PathBuf {
        self.dir.join(format!("engine-{engine}.log"))
    }

    fn config(&self) -> PathBuf {
        self.dir.join("mainstay.toml")
    }

    fn temp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// A Mainstay command on the database.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare_command(&self.mainstay, arguments);
        command.arg("--db").arg(self.database()).arg("--config").arg(self.config());
        command
    }

    /// The command of the gateway.
    pub(super) fn gateway_command(&self) -> Command {
        let mut command = self.bare_command(&self.agent, &[AGENT, "--speaks", Protocol::Gateway.as_str(), "--record"]);
        command.arg(self.records()).arg(self.gateway.to_string());
        command
    }

    fn bare_command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"MAINSTAY_")) {
            command.env_remove(name);
        }
        command.args(arguments);
        command.env(processes::MARK, &self.dir).env("TMPDIR", self.temp()).current_dir(&self.dir);
        // Ctrl-C is for the torture, which ends these processes itself.
        command.process_group(0).kill_on_drop(true);
        command
    }

    /// The living processes of the torture.
    async fn processes(self: &Arc<Self>) -> Vec<processes::MarkedProcess> {
        let workdir = self.clone();
        // It fails only when the runtime shuts down.
        tokio::task::spawn_blocking(move || processes::find(&workdir.dir)).await.unwrap_or_default()
    }

    /// Waits until no process and no temporary file is left. Returns those that remain nevertheless.
    pub(super) async fn wait_until_empty(self: &Arc<Self>) -> Vec<String> {
        let began = Instant::now();
        loop {
            let processes = self.processes().await.into_iter();
            let processes = processes.map(|found| format!("{} of run {:?}: {}", found.pid, found.run, found.command));
            let homes = files_in(&self.dir.join("m.db-agents")).filter(|path| path.is_dir());
            let files = files_in(&self.temp())
                .filter(|path| !is_of_sqlite(path))
                .chain(homes)
                .map(|path| path.display().to_string());
            let left: Vec<_> = processes.chain(files).collect();
            if left.is_empty() || began.elapsed() >= EXIT_TIMEOUT {
                return left;
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Ends all processes of the torture.
    pub(super) async fn clear(self: &Arc<Self>) {
        let began = Instant::now();
        while began.elapsed() < EXIT_TIMEOUT {
            let left = self.processes().await;
            if left.is_empty() {
                return;
            }
            for process in left {
                processes::send(&process, &self.dir, Signal::KILL);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// The panics in the logs of the engines.
    pub(super) fn panics(&self) -> Vec<String> {
        let logs = files_in(&self.dir).filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let logs = logs.filter_map(|path| fs::read_to_string(path).ok());
        let panics = |log: String| log.lines().filter(|line| line.contains("panicked at")).map(str::to_owned).collect();
        logs.flat_map::<Vec<_>, _>(panics).collect()
    }
}

/// The limit on living backends: fewer than are wanted.
pub(super) fn max_backends(sessions: usize) -> usize {
    sessions.div_ceil(4)
}

/// A kind of agent.
struct AgentKind {
    name: &'static str,
    protocol: Protocol,
    /// Whether one process has turns of several sessions at once.
    is_shared: bool,
}

const AGENTS: [AgentKind; 7] = [
    AgentKind { name: "torture-openclaw", protocol: Protocol::Openclaw, is_shared: false },
    AgentKind { name: SHARED, protocol: Protocol::Acp, is_shared: true },
    AgentKind { name: "torture-claude", protocol: Protocol::Claude, is_shared: false },
    AgentKind { name: ALONE, protocol: Protocol::Acp, is_shared: false },
    AgentKind { name: OPENCODE, protocol: Protocol::Opencode, is_shared: true },
    AgentKind { name: GATEWAY, protocol: Protocol::Gateway, is_shared: true },
    AgentKind { name: "torture-codex", protocol: Protocol::Codex, is_shared: false },
];
const SHARED: &str = "torture-acp-shared";
const ALONE: &str = "torture-acp";
const OPENCODE: &str = "torture-opencode";
const GATEWAY: &str = "torture-gateway";

/// The names of the agents, in the order in which sessions get them: those with backends more often.
pub(super) fn agents() -> impl Iterator<Item = &'static str> + Clone {
    AGENTS.iter().map(|agent| agent.name).chain([SHARED, ALONE, OPENCODE, GATEWAY])
}

/// Whether the turns of an agent go to a backend, through a relay.
pub(super) fn is_relayed(agent: &str) -> bool {
    [SHARED, ALONE, OPENCODE, GATEWAY].contains(&agent)
}

/// Whether they go to the gateway, which no engine starts.
pub(super) fn is_of_gateway(agent: &str) -> bool {
    agent == GATEWAY
}

impl AgentKind {
    fn text(&self, agent: &Value, records: &Value, gateway: SocketAddr) -> String {
        let (name, driver) = (self.name, self.protocol.as_str());
        let seed = if self.protocol == Protocol::Openclaw { r#", "--seed", "{message}""# } else { "" };
        let reached = match self.protocol {
            Protocol::Gateway => format!("url = \"ws://{gateway}\"\ntoken = \"{TOKEN}\""),
            _ => {
                format!(r#"command = [{agent}, "{AGENT}", "--record", {records}, "--speaks", "{driver}"{seed}]"#)
            }
        };
        let restarts = "keep_warm = \"1s\"\nrestart_pause = \"20ms\"\nmax_restarts = 10000\n";
        let warm = match self.protocol {
            Protocol::Acp => format!("shared = {}\n{restarts}", self.is_shared),
            Protocol::Opencode => restarts.to_owned(),
            Protocol::Openclaw | Protocol::Claude | Protocol::Codex | Protocol::Gateway => String::new(),
        };
        format!(
            r#"
[agents.{name}]
driver = "{driver}"
{reached}
max_concurrent = 1000
kill_grace = "200ms"
idle_timeout = "3s"
turn_timeout = "20s"
permissions = {{ default = "allow" }}
{warm}"#
        )
    }
}

/// A loopback address on which no other process is likely to listen while the gateway is down.
fn own_address() -> SocketAddr {
    // Not drawn from the seed: tortures with the same seed may run at the same time.
    let mut rng = fastrand::Rng::new();
    SocketAddr::from((Ipv4Addr::new(127, rng.u8(1..), rng.u8(..), rng.u8(1..255)), GATEWAY_PORT))
}

fn files_in(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path())
}

/// SQLite unlinks its temporary files as soon as it has opened them; a kill may come in between.
fn is_of_sqlite(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"etilqs_"))
}

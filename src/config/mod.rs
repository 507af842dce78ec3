//! The configuration: the settings of `mainstay.toml` and the flags, as checked values.
//!
//! Always: a [`Config`] holds legal values only (`limits.rs`), its workspaces name agents that it has, and the agents that need
//! no config and the workspace `default` are in it.
//! Deliberately absent: the file system. The caller provides the text of the file, and whether a directory or a program exists
//! is determined when it is needed.

mod access;
mod allowed;
mod document;
mod driver;
pub mod duration;
mod error;
mod fields;
mod file;
pub mod limits;
mod origin;
pub(crate) mod placeholder;
mod section;
pub mod size;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::{Agent, DriverConfig, OnInterrupt, Permissions};
use crate::allowed::Allowed;
use crate::id::{AgentName, WorkspaceName};
use crate::workspace::{ClientAccess, WhenFull, Workspace};

pub use access::{
    ADMIN, ANONYMOUS, AuthMode, InvalidToken, InvalidTokenName, NamedToken, Role, Token, TokenName, TokenSource,
};
pub use error::ConfigError;
pub use origin::{InvalidOrigin, Origin};

/// Everything that can be configured, with every value checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The HTTP surface.
    pub server: ServerConfig,
    /// The engine.
    pub engine: EngineConfig,
    /// The agents, by name; those that need no config are always included.
    pub agents: BTreeMap<AgentName, Agent>,
    /// The workspaces, by name; `default` is always included.
    pub workspaces: BTreeMap<WorkspaceName, Workspace>,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// The listen address. With `auth = "none"`, loopback only: [`ServerConfig::check_access`].
    pub listen: SocketAddr,
    /// Whether requests need a token.
    pub auth: AuthMode,
    /// The token of `[server]`; its role is admin.
    pub token: Option<Token>,
    /// `[tokens.NAME]`: tokens with a name and a role.
    pub tokens: BTreeMap<TokenName, NamedToken>,
    /// Web origins, besides our own, whose pages may send requests (`https://chat.example.com`).
    pub allowed_origins: Vec<String>,
    /// Host names, besides loopback and the listen address, that requests may name.
    pub allowed_hosts: Vec<String>,
    /// Maximum request body, in bytes.
    pub max_body_bytes: usize,
    /// Maximum number of connections with a request under way; the server keeps a few more for urgent requests.
    pub max_connections: usize,
}

/// Connections that a server accepts beyond `max_connections`, for urgent requests and for refusals. Each is open only for one
/// short request, so a few are enough.
pub fn reserved_connections(max_connections: usize) -> usize {
    (max_connections / 8).clamp(4, 64)
}

/// `[engine]`
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Maximum number of runs executed at once by this process; 0 serves without executing any.
    pub workers: u32,
    /// Length of a lease: a worker that is silent for this long loses its runs.
    pub lease: Duration,
    /// Time between two sweeps.
    pub sweep_interval: Duration,
    /// How long running turns may continue after the process was asked to stop.
    pub shutdown_grace: Duration,
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// How long an idle session keeps its slot.
    pub idle_ttl: Duration,
    /// How long rows of closed and expired assignments are kept.
    pub assignment_retention: Duration,
    /// Maximum number of backends; beyond it, the least recently used idle one is closed.
    pub max_backends: u32,
    /// Approximate memory limit for data in flight, in bytes: see [`crate::memory`].
    pub memory_limit: usize,
    /// Maximum number of queued runs of one session.
    pub max_queued: u32,
    /// What happens to turns that are still running when the grace period of a shutdown is over.
    pub on_shutdown: OnShutdown,
    /// The `mainstay` program, which is started as the shim of an agent. The binary sets itself; a program that embeds the
    /// engine needs `mainstay` on its PATH, or sets it here. Without it, only the demo agent is available, and it ends with the
    /// program.
    pub shim_program: PathBuf,
}

/// What happens to turns that are still running when the grace period of a shutdown is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnShutdown {
    /// Their agents are ended, unless another process on the file adopts the runs.
    #[default]
    End,
    /// Their agents keep running, and the next process on the file adopts the runs.
    Leave,
}

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Loss of power.
    #[default]
    Full,
    /// The death of the process.
    Process,
}

impl Config {
    /// The config without a file. `base_dir` is the base of relative paths and the directory of the workspace `default`.
    pub fn builtin(base_dir: &Path) -> Self {
        let agents = driver::builtin().map(|(name, driver)| Agent { driver, ..Agent::with_defaults(name) });
        let workspace = Workspace::with_defaults(WorkspaceName::builtin(), base_dir);
        Self {
            server: ServerConfig {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7717)),
                auth: AuthMode::Token,
                token: None,
                tokens: BTreeMap::new(),
                allowed_origins: Vec::new(),
                allowed_hosts: Vec::new(),
                max_body_bytes: 4 * 1024 * 1024,
                max_connections: 4096,
            },
            engine: EngineConfig {
                workers: 8,
                lease: Duration::from_secs(30),
                sweep_interval: Duration::from_secs(60),
                shutdown_grace: Duration::from_secs(30),
                durability: Durability::Full,
                idle_ttl: Duration::from_secs(30 * 60),
                assignment_retention: Duration::from_secs(7 * 24 * 60 * 60),
                max_backends: 10,
                memory_limit: 1024 * 1024 * 1024,
                max_queued: 1000,
                on_shutdown: OnShutdown::End,
                shim_program: "mainstay".into(),
            },
            agents: agents.map(|agent| (agent.name.clone(), agent)).collect(),
            workspaces: BTreeMap::from([(workspace.name.clone(), workspace)]),
        }
    }

    /// Reads the text of a config file. `origin` is the name of the file in errors; `base_dir` is the absolute base of the
    /// file's relative paths. Keys that the file does not set stay as in [`Config::builtin`].
    ///
    /// # Errors
    /// A [`ConfigError`] that names file, line and key of the first thing that is wrong.
    pub fn load(text: &str, origin: &Path, base_dir: &Path) -> Result<Self, ConfigError> {
        file::read(text, origin, base_dir)
    }
}

impl ServerConfig {
    /// Without tokens, every process that can connect is an administrator: that must be a deliberate choice, and limited to this
    /// machine. Checked when the daemon starts and not when the file is read, because flag and environment may still change it.
    ///
    /// # Errors
    /// [`ConfigError::Exposed`] when listening beyond loopback with `auth = "none"`, [`ConfigError::TokenUnused`] when a token
    /// is configured together with it.
    pub fn check_access(&self) -> Result<(), ConfigError> {
        match self.auth {
            AuthMode::Token => Ok(()),
            AuthMode::None if self.names_token() => Err(ConfigError::TokenUnused),
            AuthMode::None if self.listen.ip().to_canonical().is_loopback() => Ok(()),
            AuthMode::None => Err(ConfigError::Exposed { listen: self.listen }),
        }
    }

    /// Whether config, flag or environment set a token. If not, one is generated.
    pub fn names_token(&self) -> bool {
        self.token.is_some() || !self.tokens.is_empty()
    }
}

impl Agent {
    /// An agent with defaults for everything but its name.
    fn with_defaults(name: AgentName) -> Self {
        Self {
            name,
            driver: DriverConfig::Demo,
            turn_timeout: Duration::from_secs(30 * 60),
            idle_timeout: Duration::from_secs(10 * 60),
            kill_grace: Duration::from_secs(5),
            max_concurrent: 5,
            on_interrupt: OnInterrupt::Stop,
            permissions: Permissions::default(),
            allowed: Allowed::default(),
            keep_warm: Duration::from_secs(30 * 60),
            restart_pause: None,
            max_restarts: None,
        }
    }
}

impl Workspace {
    /// A workspace with defaults for everything but its name.
    fn with_defaults(name: WorkspaceName, base_dir: &Path) -> Self {
        Self {
            name,
            dir: base_dir.to_owned(),
            agent: AgentName::builtin(),
            slots: 5,
            when_full: WhenFull::default(),
            client: ClientAccess::default(),
            allowed: Allowed::default(),
        }
    }
}

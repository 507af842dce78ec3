//! The configuration: what `mainstay.toml` and the flags may say, as checked values.
//!
//! Always: a [`Config`] holds legal values only (`limits.rs`), its workspaces name agents that it has, and the agents
//! that need no config and the workspace `default` are in it. Deliberately absent: the file system. The text of the file comes from
//! the caller, and whether a directory or a program exists is found out when it is needed.

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
    /// The agents, by name; those that need no config are always there.
    pub agents: BTreeMap<AgentName, Agent>,
    /// The workspaces, by name; `default` is always there.
    pub workspaces: BTreeMap<WorkspaceName, Workspace>,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// Where to listen. Without tokens on loopback only: [`ServerConfig::check_access`].
    pub listen: SocketAddr,
    /// Whether requests need a token.
    pub auth: AuthMode,
    /// The one token of an administrator.
    pub token: Option<Token>,
    /// `[tokens.NAME]`: tokens that say whose they are and what they are good for.
    pub tokens: BTreeMap<TokenName, NamedToken>,
    /// Web origins, beside our own, whose pages may drive the daemon (`https://chat.example.com`).
    pub allowed_origins: Vec<String>,
    /// Host names, beside loopback and the listen address, that requests may name.
    pub allowed_hosts: Vec<String>,
    /// Longest request body, in bytes.
    pub max_body_bytes: usize,
    /// Most connections with a request under way; the server keeps a few more for urgent ones.
    pub max_connections: usize,
}

/// Connections that a server accepts beyond `max_connections`, for urgent requests and for refusals: each is open for the time
/// of one short request, so that a few serve many.
pub fn reserved_connections(max_connections: usize) -> usize {
    (max_connections / 8).clamp(4, 64)
}

/// `[engine]`
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Runs executed at once by this process; 0 serves without executing any.
    pub workers: u32,
    /// A worker silent for this long has lost its runs.
    pub lease: Duration,
    /// Time between two sweeps.
    pub sweep_interval: Duration,
    /// How long running turns may go on after the process was asked to stop.
    pub shutdown_grace: Duration,
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// How long a session keeps its slot while nothing happens.
    pub idle_ttl: Duration,
    /// How long rows of closed and expired assignments are kept.
    pub assignment_retention: Duration,
    /// Warm backends kept before the least recently used idle one is closed.
    pub max_backends: u32,
    /// What is in flight takes at most about this much memory, in bytes: see [`crate::memory`].
    pub memory_limit: usize,
    /// The most runs that wait in one session.
    pub max_queued: u32,
    /// What becomes of turns that are still running when the grace of a shutdown is over.
    pub on_shutdown: OnShutdown,
    /// The `mainstay` program, from which the hosts of agents are started. The binary sets itself; a program that embeds
    /// the engine needs one on its PATH, or names it here. Without one it only has the demo agent, which then ends with it.
    pub shim_program: PathBuf,
}

/// What becomes of turns that are still running when the grace of a shutdown is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnShutdown {
    /// Their agents are ended, unless another process on the file goes on with them.
    #[default]
    End,
    /// Their agents go on, and the next process on the file goes on with them.
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
    /// What holds without a config file. `base_dir` is the directory that relative paths start from, and where the
    /// workspace `default` works.
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

    /// Reads the text of a config file. `origin` is the file as errors name it; `base_dir` is the absolute directory
    /// that the file's relative paths start from. What the file does not say stays as in [`Config::builtin`].
    ///
    /// # Errors
    /// A [`ConfigError`] that names file, line and key of the first thing that is wrong.
    pub fn load(text: &str, origin: &Path, base_dir: &Path) -> Result<Self, ConfigError> {
        file::read(text, origin, base_dir)
    }
}

impl ServerConfig {
    /// Where no token is needed, every process that can connect is an administrator: that must be a choice, and one of this
    /// machine alone. Asked when the daemon starts and not when the file is read, because flag and environment may still
    /// change it.
    ///
    /// # Errors
    /// [`ConfigError::Exposed`] when listening beyond loopback with `auth = "none"`, [`ConfigError::TokenUnused`] when a token
    /// is named beside it.
    pub fn check_access(&self) -> Result<(), ConfigError> {
        match self.auth {
            AuthMode::Token => Ok(()),
            AuthMode::None if self.names_token() => Err(ConfigError::TokenUnused),
            AuthMode::None if self.listen.ip().to_canonical().is_loopback() => Ok(()),
            AuthMode::None => Err(ConfigError::Exposed { listen: self.listen }),
        }
    }

    /// Whether config, flag or environment name a token. If none does, one is made.
    pub fn names_token(&self) -> bool {
        self.token.is_some() || !self.tokens.is_empty()
    }
}

impl Agent {
    /// An agent of which the config says nothing but the name.
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
    /// A workspace of which the config says nothing but the name.
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

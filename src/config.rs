//! The configuration: `mainstay.toml`, checked. Unknown keys are errors that name the key, its line and the nearest known one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::agent::Agent;
use crate::id::{AgentName, WorkspaceName};
use crate::workspace::Workspace;

/// Everything that can be configured, with every value checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The HTTP surface.
    pub server: ServerConfig,
    /// The engine.
    pub engine: EngineConfig,
    /// The agents, by name; `demo` is always there.
    pub agents: BTreeMap<AgentName, Agent>,
    /// The workspaces, by name; `default` is always there.
    pub workspaces: BTreeMap<WorkspaceName, Workspace>,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// Where to listen. Beyond loopback a token is required.
    pub listen: SocketAddr,
    /// Needed on every request when set.
    pub token: Option<String>,
    /// Web origins, beside our own, whose pages may drive the daemon (`https://chat.example.com`).
    pub allowed_origins: Vec<String>,
    /// Host names, beside loopback and the listen address, that requests may name.
    pub allowed_hosts: Vec<String>,
    /// Longest request body, in bytes.
    pub max_body_bytes: usize,
    /// Most connections at once; a further one waits.
    pub max_connections: usize,
}

/// `[engine]`
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Runs executed at once by this process.
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
}

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Loss of power.
    #[default]
    Full,
    /// The death of the process.
    Process,
}

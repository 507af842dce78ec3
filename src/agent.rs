//! An agent: a kind of chat agent, how to start it, and its limits.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::allowed::Allowed;
use crate::id::AgentName;
use crate::options::Takes;
use crate::permission::{Policy, ToolKind};

/// A chat agent as the config describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its name in the config.
    pub name: AgentName,
    /// How it is reached.
    pub driver: DriverConfig,
    /// Limit for a whole turn, from its claim.
    pub turn_timeout: Duration,
    /// Limit for the time without progress (text, reasoning or tool event); not counted while a tool runs.
    pub idle_timeout: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// Maximum number of running turns of this agent, over all processes on the file.
    pub max_concurrent: u32,
    /// What happens after an interrupted turn.
    pub on_interrupt: OnInterrupt,
    /// How its requests to use a tool are handled.
    pub permissions: Permissions,
    /// What the options of its sessions may be.
    pub allowed: Allowed,
    /// How long an idle backend is kept warm.
    pub keep_warm: Duration,
    /// The pause before a crashed backend is restarted; the driver's default when none.
    pub restart_pause: Option<Duration>,
    /// Restarts within five minutes after which a backend is given up for five minutes; the driver's default when none.
    pub max_restarts: Option<u32>,
}

/// How an agent's requests to use a tool are handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// The policy for kinds of tools that are not named.
    pub otherwise: Policy,
    /// The policies by kind of tool.
    pub by_kind: BTreeMap<ToolKind, Policy>,
    /// A request unanswered for this long is denied.
    pub timeout: Duration,
}

impl Permissions {
    /// The policy for a kind of tool.
    pub fn policy_for(&self, kind: ToolKind) -> Policy {
        self.by_kind.get(&kind).copied().unwrap_or(self.otherwise)
    }
}

impl Default for Permissions {
    fn default() -> Self {
        // Three days: a person may be away over a weekend.
        Self { otherwise: Policy::Ask, by_kind: BTreeMap::new(), timeout: Duration::from_secs(3 * 24 * 3600) }
    }
}

/// What happens after an interrupted turn: its worker was shut down, or the shim of its agent was lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OnInterrupt {
    /// Nothing.
    #[default]
    Stop,
    /// Another run in the same session, unless a newer message was sent to it.
    Resume {
        /// Maximum number of such runs after one message.
        at_most: u32,
        /// The prompt of that run; the agent remembers the conversation itself.
        message: String,
    },
}

impl OnInterrupt {
    /// How many runs may follow one message because they were interrupted.
    pub fn resumes(&self) -> u32 {
        match self {
            Self::Stop => 0,
            Self::Resume { at_most, .. } => *at_most,
        }
    }
}

/// The default prompt of a resumed run.
pub const RESUME_MESSAGE: &str = "Your last turn was interrupted. Go on where you stopped.";

/// How an agent is reached. A variant holds what only it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverConfig {
    /// Built in; needs neither a key nor a network.
    Demo,
    /// One process per turn that writes OpenClaw agent events as JSON lines.
    Openclaw(ProcessSpec),
    /// One process per turn; its standard output is the answer, its exit code says whether it succeeded.
    Text(ProcessSpec),
    /// Claude Code: one process per turn, JSON lines in both directions.
    Claude(ProcessSpec),
    /// Codex: `codex exec --json`, one process per turn.
    Codex(ProcessSpec),
    /// An agent that speaks ACP on its stdin and stdout, kept warm.
    Acp {
        /// How it is started.
        process: ProcessSpec,
        /// Whether one process serves all sessions of a workspace; otherwise each session has its own.
        shared: bool,
    },
    /// `opencode serve`: a server for all sessions of a workspace, kept warm.
    Opencode(ProcessSpec),
    /// A running OpenClaw gateway, reached over a WebSocket.
    OpenclawGateway(GatewaySpec),
}

impl DriverConfig {
    /// The session options that its agents accept.
    pub fn takes_options(&self) -> Takes {
        let (always, advertised): (&[&str], _) = match self {
            Self::Demo | Self::Openclaw(_) | Self::Text(_) | Self::OpenclawGateway(_) => (&[], false),
            Self::Claude(_) => (&CLAUDE_OPTIONS, false),
            Self::Codex(_) => (&CODEX_OPTIONS, false),
            Self::Opencode(_) => (&["extra.variant"], true),
            Self::Acp { .. } => (&[], true),
        };
        Takes { always, advertised }
    }

    /// The process that it starts, if it starts one.
    pub fn process(&self) -> Option<&ProcessSpec> {
        match self {
            Self::Demo | Self::OpenclawGateway(_) => None,
            Self::Openclaw(process)
            | Self::Text(process)
            | Self::Claude(process)
            | Self::Codex(process)
            | Self::Opencode(process)
            | Self::Acp { process, .. } => Some(process),
        }
    }

    /// Whether its agents are keyed by slot: which one takes a turn, or what it remembers, depends on `{slot}`.
    pub fn is_keyed_by_slot(&self) -> bool {
        if let Self::OpenclawGateway(gateway) = self {
            return gateway.agent.contains("{slot}");
        }
        self.process().is_some_and(|process| {
            process.command.iter().chain(process.env.values()).any(|text| text.contains("{slot}"))
        })
    }

    /// The media types of files that its agents accept in a message; `*` matches any.
    pub fn takes(&self) -> &'static [&'static str] {
        match self {
            Self::Demo => &["text/*"],
            Self::Claude(_) | Self::Opencode(_) => &["image/*", "application/pdf", "text/*"],
            // An agent that supports fewer types refuses the others itself.
            Self::Acp { .. } => &["image/*", "audio/*", "application/*", "text/*"],
            Self::OpenclawGateway(_) => &["image/*"],
            Self::Openclaw(_) | Self::Text(_) | Self::Codex(_) => &[],
        }
    }

    /// Whether its agents accept a file of this media type in a message.
    pub fn accepts(&self, media_type: &str) -> bool {
        self.takes().iter().any(|taken| match taken.strip_suffix('*') {
            Some(kind) => media_type.starts_with(kind),
            None => *taken == media_type,
        })
    }

    /// Whether its agents accept a file that the message only links to.
    pub fn takes_links(&self) -> bool {
        !self.takes().is_empty() && !matches!(self, Self::OpenclawGateway(_))
    }

    /// The word in the config.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Openclaw(_) => "openclaw",
            Self::Text(_) => "text",
            Self::Claude(_) => "claude",
            Self::Codex(_) => "codex",
            Self::Acp { .. } => "acp",
            Self::Opencode(_) => "opencode",
            Self::OpenclawGateway(_) => "openclaw-gateway",
        }
    }
}

/// The options that Claude Code always accepts; those beyond the common ones are named as on its command line.
pub const CLAUDE_OPTIONS: [&str; 8] = [
    "mode",
    "model",
    "permission_profile",
    "extra.agent",
    "extra.append-system-prompt",
    "extra.effort",
    "extra.fallback-model",
    "extra.max-budget-usd",
];

/// The options that Codex accepts; those beyond the common ones are named as in its config.
pub const CODEX_OPTIONS: [&str; 5] = [
    "model",
    "permission_profile",
    "extra.model_reasoning_effort",
    "extra.model_reasoning_summary",
    "extra.model_verbosity",
];

/// An OpenClaw gateway.
#[derive(Clone, PartialEq, Eq)]
pub struct GatewaySpec {
    /// Its address: `ws://127.0.0.1:18789`.
    pub url: String,
    /// Its token, if it requires one.
    pub token: Option<String>,
    /// The gateway's agent that takes a turn, with placeholders: `{slot}` unless the config says otherwise.
    pub agent: String,
}

impl std::fmt::Debug for GatewaySpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewaySpec").field("url", &self.url).field("agent", &self.agent).finish_non_exhaustive()
    }
}

/// How a process is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// The program and its arguments, with placeholders. Without `{message}` the message goes to stdin.
    pub command: Vec<String>,
    /// Environment variables added to our own, with placeholders in the values.
    pub env: BTreeMap<String, String>,
    /// A longer line of output is counted and skipped.
    pub max_line_bytes: usize,
}

impl ProcessSpec {
    /// A command without placeholders or an environment of its own.
    pub fn of(command: &[&str]) -> Self {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        Self { command, env: BTreeMap::new(), max_line_bytes: DEFAULT_MAX_LINE_BYTES }
    }
}

/// 16 MiB: agents were seen to write single lines of 570 KB, and of several MB with an image in a tool result.
pub const DEFAULT_MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

//! An agent: a kind of chat agent, how to start it, and what it may take.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::AgentName;

/// A chat agent as the config describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its name in the config.
    pub name: AgentName,
    /// How it is reached.
    pub driver: Driver,
    /// Limit for a whole turn, from its claim.
    pub turn_timeout: Duration,
    /// Limit for no progress (no text, reasoning or tool event); stands still while a tool runs.
    pub idle_timeout: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// Running turns of this agent over all processes on the file.
    pub max_concurrent: u32,
    /// What follows a turn that was interrupted.
    pub on_interrupt: OnInterrupt,
}

/// What follows a turn that was interrupted: its worker was shut down, or the process that held the agent was lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OnInterrupt {
    /// Nothing.
    #[default]
    Stop,
    /// Another run in the same session, as long as nothing newer was asked of it.
    Resume {
        /// So often after one message.
        at_most: u32,
        /// What the agent is told then; it remembers the conversation itself.
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

/// What an agent is told when it is to resume, unless the config says otherwise.
pub const RESUME_MESSAGE: &str = "Your last turn was interrupted. Go on where you stopped.";

/// How an agent is reached. A variant holds what only it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    /// Built in; answers without any key, network or process.
    Demo,
    /// A process a turn that writes OpenClaw agent events as JSON lines.
    Openclaw(ProcessSpec),
}

impl Driver {
    /// Whether its agents live in processes of their own, so that another engine can go on with them.
    pub fn outlives_the_engine(&self) -> bool {
        match self {
            Self::Demo => false,
            Self::Openclaw(_) => true,
        }
    }

    /// The word in the config.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Openclaw(_) => "openclaw",
        }
    }
}

/// A process that is started for a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// The program and its arguments, with placeholders. Without `{message}` the message goes to stdin.
    pub command: Vec<String>,
    /// Environment beside our own, with placeholders in the values.
    pub env: BTreeMap<String, String>,
    /// A longer line of output is counted and skipped.
    pub max_line_bytes: usize,
}

/// 16 MiB: agents were seen to write single lines of 570 KB, and of several MB with an image in a tool result.
pub const DEFAULT_MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

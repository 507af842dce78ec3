//! A workspace: a directory with its resident agent (the fallback) and its pool of slots.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::allowed::Allowed;
use crate::id::{AgentName, WorkspaceName};

/// A workspace as the config describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// Its name in the config.
    pub name: WorkspaceName,
    /// The working directory of its agents; absolute.
    pub dir: PathBuf,
    /// The resident agent, and the agent of its slots.
    pub agent: AgentName,
    /// How many slots its pool has.
    pub slots: u32,
    /// What a session gets when no slot is free.
    pub when_full: WhenFull,
    /// What agents may ask Mainstay to do here.
    pub client: ClientAccess,
    /// What the options of its sessions may be.
    pub allowed: Allowed,
}

impl Workspace {
    /// The public id of one of its slots.
    pub fn slot_id(&self, number: u32) -> String {
        format!("chat-slot-{}-{number}", self.name)
    }
}

/// What an agent may ask Mainstay to do in a workspace, instead of doing it itself (ACP's client capabilities). Nothing by
/// default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAccess {
    /// Read its files.
    pub read_files: bool,
    /// Write its files.
    pub write_files: bool,
    /// Run commands in it.
    pub terminals: bool,
}

/// What a session gets when no slot is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The slot of the session that has been idle longest. While all are busy, the run stays queued, and the next session that
    /// turns idle gives up its slot. Sessions whose agents are keyed by slot keep theirs, and share the resident agent instead
    /// of waiting.
    #[default]
    Reclaim,
    /// The workspace's resident agent, one run at a time.
    Share,
    /// The next slot that becomes free; until then its run stays queued.
    Wait,
    /// The message is refused.
    Reject,
}

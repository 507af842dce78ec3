//! A run under a lease of this process: claimed, adopted, or taken over only to be settled.

use std::sync::Arc;

use crate::chunk::Chunk;
use crate::config::Config;
use crate::id::{AgentName, RunId, SessionId, WorkspaceName};
use crate::lease::{Lease, SessionKey};
use crate::policy::OptionRules;
use crate::run::{Attempt, ExitReport, Outcome};
use crate::store::run::{Claimed, Orphan, Settle};

/// A run that this process may write to.
#[derive(Debug, Clone)]
pub(super) struct LeasedRun {
    /// The right to write to it.
    pub lease: Lease,
    pub run: RunId,
    pub session: SessionKey,
    pub session_id: SessionId,
    pub workspace: WorkspaceName,
    pub agent: AgentName,
    /// Limit of the whole turn: its own, or that of its session.
    pub timeout_ms: Option<i64>,
}

impl LeasedRun {
    /// The settlement of the run, with defaults for everything else that may be known of it.
    pub fn settle(&self, config: &Config, events: Vec<Chunk>, outcome: Outcome, parts: Option<Arc<str>>) -> Settle {
        Settle {
            lease: self.lease,
            session: self.session,
            run_id: self.run,
            events,
            source_offset: 0,
            outcome,
            exit: ExitReport::default(),
            parts,
            progress: None,
            resumes: config.agents.get(&self.agent).map_or(0, |agent| agent.on_interrupt.resumes()),
        }
    }

    /// The rules for the options of its session.
    pub fn rules(&self, config: &Config) -> OptionRules {
        let (agent, workspace) = (config.agents.get(&self.agent), config.workspaces.get(&self.workspace));
        OptionRules::new((&self.agent, agent), (&self.workspace, workspace))
    }

    /// The attempt at the run that the lease allows.
    pub fn attempt(&self) -> Attempt {
        Attempt { run: self.run, number: self.lease.token }
    }
}

impl From<&Claimed> for LeasedRun {
    fn from(claimed: &Claimed) -> Self {
        Self {
            lease: claimed.lease,
            run: claimed.run,
            session: claimed.session,
            session_id: claimed.session_id.clone(),
            workspace: claimed.workspace.clone(),
            agent: claimed.agent.clone(),
            timeout_ms: claimed.timeout_ms,
        }
    }
}

impl From<&Orphan> for LeasedRun {
    fn from(orphan: &Orphan) -> Self {
        Self {
            lease: orphan.lease,
            run: orphan.run,
            session: orphan.session,
            session_id: orphan.session_id.clone(),
            workspace: orphan.workspace.clone(),
            agent: orphan.agent.clone(),
            timeout_ms: orphan.timeout_ms,
        }
    }
}

//! The run that somebody moves under a lease: claimed to be driven, adopted, or only to be settled.

use std::sync::Arc;

use crate::chunk::Chunk;
use crate::config::Config;
use crate::id::{AgentName, RunId, SessionId, WorkspaceName};
use crate::lease::{Lease, SessionKey};
use crate::policy::OptionRules;
use crate::run::{Attempt, ExitReport, Outcome};
use crate::store::run::{Claimed, Orphan, Settle};

/// The run that is driven, claimed or adopted.
#[derive(Debug, Clone)]
pub(super) struct LeasedRun {
    /// The right to write to it.
    pub lease: Lease,
    /// Its id.
    pub run: RunId,
    /// Its session's row.
    pub session: SessionKey,
    /// Its session.
    pub session_id: SessionId,
    /// Its workspace.
    pub workspace: WorkspaceName,
    /// Its agent.
    pub agent: AgentName,
    /// Its own limit for the whole turn, or that of its session.
    pub timeout_ms: Option<i64>,
}

impl LeasedRun {
    /// The end of the run, as far as nothing else is known of it.
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

    /// What the options of its session may be.
    pub fn rules(&self, config: &Config) -> OptionRules {
        let (agent, workspace) = (config.agents.get(&self.agent), config.workspaces.get(&self.workspace));
        OptionRules::new((&self.agent, agent), (&self.workspace, workspace))
    }

    /// The try at the run that the lease allows.
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

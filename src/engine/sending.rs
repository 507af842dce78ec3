//! Sending: a message becomes a run, and a run is asked to stop.

use super::{Engine, EngineError, Purpose, check_duration, not_found};
use crate::agent::Agent;
use crate::clock::millis;
use crate::id::{AgentName, RunId, SessionId, WorkspaceName};
use crate::message::{InvalidMessage, UserMessage};
use crate::run::{Run, RunOptions};
use crate::store::run::Enqueue;
use crate::store::session::NewSession;
use crate::workspace::Workspace;

/// A message to send.
#[derive(Debug, Clone)]
pub struct SendMessage {
    /// The session; created when it does not exist.
    pub session: SessionId,
    /// What the person said.
    pub message: UserMessage,
    /// Why the message is sent.
    pub purpose: Purpose,
    /// For a new session: its workspace, when not `default`.
    pub workspace: Option<WorkspaceName>,
    /// For a new session: its agent, when not the workspace's.
    pub agent: Option<AgentName>,
    /// How it is to be run.
    pub options: RunOptions,
    /// The session frees its slot when it has nothing left to do: for a session that is used once. A further message revokes
    /// that.
    pub close_when_idle: bool,
    /// In whose name the message declines the open questions of the running run, if that run waits for nothing but answers;
    /// the message goes next then. `None` declines nothing.
    pub declined_by: Option<String>,
    /// Whether the run goes next, before those that already wait.
    pub goes_next: bool,
}

impl SendMessage {
    /// A message for a session, with the usual options.
    pub fn new(session: SessionId, message: UserMessage) -> Self {
        let (purpose, options) = (Purpose::Send, RunOptions::default());
        let (workspace, agent, declined_by) = (None, None, None);
        let (goes_next, close_when_idle) = (false, false);
        Self { session, message, purpose, workspace, agent, options, declined_by, goes_next, close_when_idle }
    }
}

/// A message that was accepted, and its run.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The run.
    pub run: Run,
    /// False if the same message had been sent before: nothing was started.
    pub created: bool,
}

impl Engine {
    /// Enqueues a message: message, run and the session's assignment in one transaction; returns after the commit. Sending the
    /// same message id again returns the run that it has.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] for an unknown agent or workspace, [`EngineError::InvalidMessage`] for files that the
    /// agent does not take, [`EngineError::Refused`], [`EngineError::InvalidValue`]
    /// for options out of range, [`EngineError::ShuttingDown`], [`EngineError::Failed`], [`EngineError::Store`].
    pub async fn send(&self, send: SendMessage) -> Result<Sent, EngineError> {
        if self.shared.draining.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        self.shared.health.check_alive()?;
        if !(-1000..=1000).contains(&send.options.priority) {
            return Err(EngineError::InvalidValue("priority must be between -1000 and 1000".into()));
        }
        if let Some(timeout) = send.options.timeout {
            check_duration("timeout_ms", timeout)?;
        }
        let known = self.shared.store.find_workspace_of(&send.session).await?;
        let workspace = match (&send.workspace, known) {
            (Some(name), _) => self.workspace(name)?,
            // A session of a workspace that is not configured here waits for a process that knows it.
            (None, Some(known)) => match self.shared.config.workspaces.get(&known) {
                Some(workspace) => workspace,
                None => self.default_workspace()?,
            },
            (None, None) => self.default_workspace()?,
        };
        let agent = self.agent_or_resident(send.agent.as_ref(), workspace)?;
        if send.message.files().next().is_some() {
            let known = self.shared.store.find_session(&send.session).await?;
            self.check_files(&send.message, known.as_ref().map_or(&agent, |session| &session.agent))?;
        }
        let agents = &self.shared.config.agents;
        let enqueue = Enqueue {
            session: send.session,
            new: NewSession::of(workspace.name.clone(), agent, millis(self.shared.config.engine.idle_ttl)),
            workspace_named: send.workspace.is_some(),
            agent_named: send.agent.is_some(),
            message: send.message,
            purpose: send.purpose,
            options: send.options,
            declined_by: send.declined_by,
            goes_next: send.goes_next,
            max_queued: self.shared.config.engine.max_queued,
            when_full: workspace.when_full,
            slot_bound: agents
                .values()
                .filter(|agent| agent.driver.is_keyed_by_slot())
                .map(|a| a.name.clone())
                .collect(),
            close_when_idle: send.close_when_idle,
        };
        let enqueued = self.shared.store.enqueue(enqueue).await??;
        if enqueued.created {
            let run = &enqueued.run.run;
            tracing::info!(run.id = %run.id, session.id = %run.session_id, agent = %run.agent, "run enqueued");
        }
        Ok(Sent { run: self.with_reason(enqueued.run).await?, created: enqueued.created })
    }

    /// Refuses files that the agent of the session does not accept. Nothing is checked for an agent that is not configured
    /// here: the process that executes the run knows what it accepts.
    fn check_files(&self, message: &UserMessage, agent: &AgentName) -> Result<(), InvalidMessage> {
        let Some(Agent { driver, .. }) = self.shared.config.agents.get(agent) else { return Ok(()) };
        for (index, file) in message.files() {
            let not_taken = |what, takes| InvalidMessage::NotTaken { index, what, agent: agent.clone(), takes };
            if !driver.accepts(&file.media_type) {
                let takes = match driver.takes() {
                    [] => "it takes text only".to_owned(),
                    takes => format!("it takes {}", takes.join(", ")),
                };
                return Err(not_taken(format!("a file of type {:?}", file.media_type), takes));
            }
            if file.is_link() && !driver.takes_links() {
                return Err(not_taken("a link".to_owned(), "send the file itself, in a data: URL".to_owned()));
            }
        }
        Ok(())
    }

    /// Requests a run to stop, in whatever state it is; repeating the request changes nothing. Returns the run as it is then,
    /// and whether it was settled before.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn cancel_run(&self, id: RunId) -> Result<(Run, bool), EngineError> {
        let cancelled = self.shared.store.cancel_run(id).await?.ok_or_else(|| not_found("run", id))?;
        let run = self.with_reason(cancelled.run).await?;
        if !cancelled.was_settled {
            tracing::info!(run.id = %run.id, session.id = %run.session_id, "cancel requested");
        }
        Ok((run, cancelled.was_settled))
    }

    /// Requests all runs of the sessions below a session to stop: of those that work for it, and of those that work for them.
    /// Its own runs are left alone. Returns those that were not settled.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn cancel_descendants(&self, id: &SessionId) -> Result<Vec<RunId>, EngineError> {
        let key = self.session_key(id).await?;
        let runs = self.shared.store.cancel_descendants(key).await?;
        tracing::info!(session.id = %id, runs = runs.len(), "cancel requested of what works for the session");
        Ok(runs)
    }

    /// Cancels the current run of a session: the running one, else the next in its queue. `None` if there is none.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn cancel_session(&self, id: &SessionId) -> Result<Option<Run>, EngineError> {
        let key = self.session_key(id).await?;
        match self.shared.store.find_current_run(key).await? {
            Some(current) => Ok(Some(self.cancel_run(current.run.id).await?.0)),
            None => Ok(None),
        }
    }

    /// Waits until a run is settled.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn wait_settled(&self, id: RunId) -> Result<Run, EngineError> {
        loop {
            let run = self.run(id).await?;
            if run.status.is_settled() {
                return Ok(run);
            }
            let mut follower = self.follow_run(id, run.last_seq.unwrap_or(0)).await?;
            while follower.next_frames().await?.is_some() {}
        }
    }

    pub(super) fn workspace(&self, name: &WorkspaceName) -> Result<&Workspace, EngineError> {
        self.shared.config.workspaces.get(name).ok_or_else(|| not_found("workspace", name))
    }

    pub(super) fn default_workspace(&self) -> Result<&Workspace, EngineError> {
        self.shared
            .config
            .workspaces
            .iter()
            .find(|(name, _)| name.as_str() == "default")
            .map_or_else(|| Err(not_found("workspace", "default")), |(_, workspace)| Ok(workspace))
    }

    pub(super) fn agent_or_resident(
        &self,
        name: Option<&AgentName>,
        workspace: &Workspace,
    ) -> Result<AgentName, EngineError> {
        let name = name.unwrap_or(&workspace.agent);
        match self.shared.config.agents.contains_key(name) {
            true => Ok(name.clone()),
            false => Err(not_found("agent", name)),
        }
    }
}

//! Sessions: made, changed, closed, and what was said in them.

use std::time::Duration;

use super::{Engine, EngineError, MessageCursor, MessagePage, SessionCursor, check_duration, not_found};
use crate::clock::millis;
use crate::id::{AgentName, SessionId, WorkspaceName};
use crate::session::Session;
use crate::store::session::{Closed, Created, NamedValues, NewSession};

/// A session to be made.
#[derive(Debug, Clone, Default)]
pub struct CreateSession {
    /// Its id; made when none is given.
    pub id: Option<SessionId>,
    /// Its workspace, when not `default`.
    pub workspace: Option<WorkspaceName>,
    /// Its agent, when not the workspace's.
    pub agent: Option<AgentName>,
    /// Its title; taken from its first message when none.
    pub title: Option<String>,
    /// How long it keeps its slot while nothing happens; the engine's default when none.
    pub idle_ttl: Option<Duration>,
}

/// Longest title, in characters.
const MAX_TITLE_CHARS: usize = 500;

impl Engine {
    /// Creates a session. Answers with it, and whether it is new.
    ///
    /// # Errors
    /// [`EngineError::SessionDiffers`] when the id exists with other values; [`EngineError::NotFound`] for an unknown agent
    /// or workspace; [`EngineError::InvalidValue`]; [`EngineError::Store`].
    pub async fn create_session(&self, create: CreateSession) -> Result<(Session, bool), EngineError> {
        let workspace = match &create.workspace {
            Some(name) => self.workspace(name)?,
            None => self.default_workspace()?,
        };
        let agent = self.agent_or_resident(create.agent.as_ref(), workspace)?;
        let idle_ttl = create.idle_ttl.unwrap_or(self.shared.config.engine.idle_ttl);
        check_duration("idle_ttl_ms", idle_ttl)?;
        check_title(create.title.as_deref())?;
        let id = create.id.unwrap_or_else(SessionId::generate);
        let mut new = NewSession::of(workspace.name.clone(), agent, millis(idle_ttl));
        new.title = create.title.clone();
        let named = NamedValues {
            workspace: create.workspace,
            agent: create.agent,
            title: create.title,
            idle_ttl_ms: create.idle_ttl.map(millis),
        };
        match self.shared.store.create_session(id.clone(), new, named).await? {
            Created::Different => Err(EngineError::SessionDiffers(id.to_string())),
            created => Ok((self.session(&id).await?, created == Created::New)),
        }
    }

    /// Changes the title or the idle TTL of a session.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::InvalidValue`], [`EngineError::Store`].
    pub async fn update_session(
        &self,
        id: &SessionId,
        title: Option<String>,
        idle_ttl: Option<Duration>,
    ) -> Result<Session, EngineError> {
        check_title(title.as_deref())?;
        if let Some(idle_ttl) = idle_ttl {
            check_duration("idle_ttl_ms", idle_ttl)?;
        }
        match self.shared.store.update_session(id.clone(), title, idle_ttl.map(millis)).await? {
            true => self.session(id).await,
            false => Err(not_found("session", id)),
        }
    }

    /// Frees the slot of a session. With `cancel`, its runs are asked to stop, and the slot is free when the last one has.
    ///
    /// # Errors
    /// [`EngineError::NotFound`]; [`EngineError::SessionBusy`] without `cancel`; [`EngineError::Store`].
    pub async fn close_session(&self, id: &SessionId, cancel: bool) -> Result<Session, EngineError> {
        match self.shared.store.close_session(id.clone(), cancel).await? {
            None => Err(not_found("session", id)),
            Some(Closed::Busy(run)) => Err(EngineError::SessionBusy(run)),
            Some(Closed::Closed | Closed::Closing) => self.session(id).await,
        }
    }

    /// A session.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn session(&self, id: &SessionId) -> Result<Session, EngineError> {
        self.shared.store.find_session(id).await?.ok_or_else(|| not_found("session", id))
    }

    /// A page of sessions, the one with the latest news first, each with the cursor behind it.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_sessions(
        &self,
        after: Option<SessionCursor>,
        limit: i64,
    ) -> Result<Vec<(SessionCursor, Session)>, EngineError> {
        Ok(self.shared.store.list_sessions(after, limit).await?)
    }

    /// A page of a conversation, oldest first. Without `partial`, the answer of an unfinished run is left out: the
    /// resumed stream brings it.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn list_messages(
        &self,
        id: &SessionId,
        after: MessageCursor,
        limit: i64,
        partial: bool,
    ) -> Result<MessagePage, EngineError> {
        let key = self.session_key(id).await?;
        Ok(self.shared.store.list_messages(key, after, limit, partial).await?)
    }
}

fn check_title(title: Option<&str>) -> Result<(), EngineError> {
    match title {
        Some(title) if title.chars().count() > MAX_TITLE_CHARS => {
            Err(EngineError::InvalidValue(format!("title must have at most {MAX_TITLE_CHARS} characters")))
        }
        _ => Ok(()),
    }
}

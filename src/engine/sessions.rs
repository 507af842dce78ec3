//! Sessions: made, changed, closed, and what was said in them.

use std::time::Duration;

use serde_json::{Map, Value};

use super::prompting::resolve;
use super::{
    Engine, EngineError, MessageCursor, MessagePage, MessageRange, PageFrom, Refusal, SessionCursor, check_duration,
    not_found,
};
use crate::clock::millis;
use crate::id::{AgentName, SessionId, WorkspaceName};
use crate::lease::SessionKey;
use crate::options::{InvalidOption, SessionOptions, Takes};
use crate::policy::OptionRules;
use crate::session::{AgentSession, OptionsReport, Session, SessionMode};
use crate::store::agent_session::Reset;
use crate::store::session::{Closed, Created, NamedValues, NewSession};
use crate::text::{MAX_TITLE_CHARS, given_line};

/// A session to be made.
#[derive(Debug, Clone, Default)]
pub struct CreateSession {
    /// Its id; made when none is given.
    pub id: Option<SessionId>,
    /// Its workspace, when not `default`.
    pub workspace: Option<WorkspaceName>,
    /// Its agent, when not the workspace's.
    pub agent: Option<AgentName>,
    /// Its title; left to its first message and to its agent when none.
    pub title: Option<String>,
    /// How long it keeps its slot while nothing happens; the engine's default when none.
    pub idle_ttl: Option<Duration>,
    /// Whether its agent remembers it from turn to turn; it does when none is given.
    pub mode: Option<SessionMode>,
    /// Its options, by their names in JSON.
    pub options: Option<Map<String, Value>>,
    /// The session that it works for, which must exist.
    pub spawned_by: Option<SessionId>,
    /// What it is for, in a word or two: up to 160 characters.
    pub label: Option<String>,
}

/// Longest label, in characters.
const MAX_LABEL_CHARS: usize = 160;
/// Most entries of a session's history in its agents that are listed.
const AGENT_SESSIONS: i64 = 50;

impl Engine {
    /// Creates a session. Returns it, and whether it is new.
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
        let title = create.title.as_deref().map(given_title).transpose()?;
        check_label(create.label.as_deref())?;
        let options = create.options.as_ref().map(|given| SessionOptions::default().patched(given)).transpose()?;
        if let Some(options) = &options {
            self.check_options(&agent, &workspace.name, options, None).await?;
        }
        let id = create.id.unwrap_or_else(SessionId::generate);
        let mut new = NewSession::of(workspace.name.clone(), agent, millis(idle_ttl));
        new.title = title.clone();
        new.mode = create.mode.unwrap_or_default();
        new.options = options.clone().unwrap_or_default();
        new.spawned_by = create.spawned_by.clone();
        new.label = create.label.clone();
        let parent = create.spawned_by.clone();
        let named = NamedValues {
            workspace: create.workspace,
            agent: create.agent,
            title,
            idle_ttl_ms: create.idle_ttl.map(millis),
            mode: create.mode,
            options,
            spawned_by: create.spawned_by,
            label: create.label,
        };
        match self.shared.store.create_session(id.clone(), new, named).await? {
            Created::Different => Err(EngineError::SessionDiffers(id.to_string())),
            Created::NoParent => Err(not_found("parent session", parent.as_ref().map_or("", SessionId::as_str))),
            created => Ok((self.session(&id).await?, created == Created::New)),
        }
    }

    /// Changes the title or the idle TTL of a session. A title of `Some(None)` is left to its agent and its next message.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::InvalidValue`], [`EngineError::Store`].
    pub async fn update_session(
        &self,
        id: &SessionId,
        title: Option<Option<String>>,
        idle_ttl: Option<Duration>,
    ) -> Result<Session, EngineError> {
        let title = title.map(|title| title.as_deref().map(given_title).transpose()).transpose()?;
        if let Some(idle_ttl) = idle_ttl {
            check_duration("idle_ttl_ms", idle_ttl)?;
        }
        match self.shared.store.update_session(id.clone(), title, idle_ttl.map(millis)).await? {
            true => self.session(id).await,
            false => Err(not_found("session", id)),
        }
    }

    /// Frees the slot of a session. With `cancel`, its runs are requested to stop, and the slot is freed when the last one
    /// has.
    ///
    /// # Errors
    /// [`EngineError::NotFound`]; [`EngineError::SessionBusy`] without `cancel`; [`EngineError::Store`].
    pub async fn close_session(&self, id: &SessionId, cancel: bool) -> Result<Session, EngineError> {
        match self.shared.store.close_session(id.clone(), cancel).await? {
            None => Err(not_found("session", id)),
            Some(Closed::Busy(run)) => Err(EngineError::SessionBusy(run)),
            Some(Closed::Closed | Closed::Closing) => {
                self.shared.executing.closing.notify_one();
                self.session(id).await
            }
        }
    }

    /// A session.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn session(&self, id: &SessionId) -> Result<Session, EngineError> {
        self.shared.store.find_session(id).await?.ok_or_else(|| not_found("session", id))
    }

    /// The options of a session, the effect of each, and what its agent offers. The agent is not asked.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn session_options(&self, id: &SessionId) -> Result<OptionsReport, EngineError> {
        let told = self.shared.store.find_told(id).await?.ok_or_else(|| not_found("session", id))?;
        // An agent that is not configured here may offer anything.
        let agent = self.shared.config.agents.get(&told.agent);
        let takes = agent.map_or(Takes { always: &[], advertised: true }, |agent| agent.driver.takes_options());
        let effects = told.options.effects(takes, told.advertised.as_ref());
        Ok(OptionsReport { options: told.options, effects, advertised: told.advertised })
    }

    /// Changes options of a session, from its next turn on: what `patch` names takes the place of what was, null clears.
    ///
    /// # Errors
    /// [`EngineError::InvalidOption`], and then nothing is changed; [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn update_options(
        &self,
        id: &SessionId,
        patch: Map<String, Value>,
    ) -> Result<OptionsReport, EngineError> {
        // What is cleared needs no permission, and what stays had one.
        self.check_allowed(id, &SessionOptions::default().patched(&patch)?).await?;
        self.change_options(id, move |options| options.patched(&patch)).await
    }

    /// Sets the options of a session, from its next turn on; those that are not named are cleared.
    ///
    /// # Errors
    /// As [`Engine::update_options`].
    pub async fn replace_options(
        &self,
        id: &SessionId,
        options: Map<String, Value>,
    ) -> Result<OptionsReport, EngineError> {
        let options = SessionOptions::default().patched(&options)?;
        self.check_allowed(id, &options).await?;
        self.change_options(id, move |_| Ok(options.clone())).await
    }

    /// Whether the config allows these options in a session.
    async fn check_allowed(&self, id: &SessionId, options: &SessionOptions) -> Result<(), EngineError> {
        let told = self.shared.store.find_told(id).await?.ok_or_else(|| not_found("session", id))?;
        self.check_options(&told.agent, &told.workspace, options, told.advertised.as_ref()).await
    }

    async fn check_options(
        &self,
        agent: &AgentName,
        workspace: &WorkspaceName,
        options: &SessionOptions,
        advertised: Option<&Value>,
    ) -> Result<(), EngineError> {
        let config = &self.shared.config;
        let rules = OptionRules::new((agent, config.agents.get(agent)), (workspace, config.workspaces.get(workspace)));
        rules.check(options, advertised)?;
        if let Some(cwd) = &options.cwd {
            resolve(&rules, cwd.clone()).await?;
        }
        Ok(())
    }

    async fn change_options(
        &self,
        id: &SessionId,
        change: impl Fn(&SessionOptions) -> Result<SessionOptions, InvalidOption> + Clone + Send + Sync + 'static,
    ) -> Result<OptionsReport, EngineError> {
        let changed = self.shared.store.change_options(id.clone(), move |before, advertised| {
            let options = change(before)?;
            options.check_offered(before, advertised).map(|()| options)
        });
        changed.await?.ok_or_else(|| not_found("session", id))??;
        self.session_options(id).await
    }

    /// Makes the agent of a session forget it: the next turn begins a new session of the agent. The conversation stays, and so
    /// do its options unless `options`. The agent is not asked.
    ///
    /// # Errors
    /// [`EngineError::NotFound`]; [`EngineError::Refused`] while a run executes; [`EngineError::Store`].
    pub async fn reset_session(&self, id: &SessionId, options: bool) -> Result<Session, EngineError> {
        match self.shared.store.reset_session(id.clone(), options).await? {
            None => Err(not_found("session", id)),
            Some(Reset::Busy(run)) => Err(Refusal::Busy(run).into()),
            Some(Reset::Done) => self.session(id).await,
        }
    }

    /// The newest ids under which agents have known a session, newest first; at most 50.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn list_agent_sessions(&self, id: &SessionId) -> Result<Vec<AgentSession>, EngineError> {
        let key = self.session_key(id).await?;
        Ok(self.shared.store.list_agent_sessions(key, AGENT_SESSIONS).await?)
    }

    /// A page of the sessions that work for a session, and of those that work for them, each behind the one that it works
    /// for and with the cursor behind it; 0 is the beginning.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn list_descendants(
        &self,
        id: &SessionId,
        after: SessionKey,
        limit: i64,
    ) -> Result<Vec<(SessionKey, Session)>, EngineError> {
        let key = self.session_key(id).await?;
        Ok(self.shared.store.list_descendants(key, after, limit).await?)
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
        self.message_page(id, MessageRange { from: PageFrom::After(after), limit, partial }).await
    }

    /// A page of a conversation, from either end. It ends earlier when the messages are large.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn message_page(&self, id: &SessionId, range: MessageRange) -> Result<MessagePage, EngineError> {
        let key = self.session_key(id).await?;
        Ok(self.shared.store.message_page(key, range).await?)
    }

    /// The same without the parts of a message that is a page of its own: they are read in pieces.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn message_page_without_large(
        &self,
        id: &SessionId,
        range: MessageRange,
    ) -> Result<MessagePage, EngineError> {
        let key = self.session_key(id).await?;
        Ok(self.shared.store.message_page_without_large(key, range).await?)
    }
}

fn given_title(title: &str) -> Result<String, EngineError> {
    Ok(given_line("title", title, MAX_TITLE_CHARS)?)
}

fn check_label(label: Option<&str>) -> Result<(), EngineError> {
    let is_fine = |label: &str| {
        (1..=MAX_LABEL_CHARS).contains(&label.chars().count())
            && label.trim() == label
            && given_line("label", label, MAX_LABEL_CHARS).is_ok()
    };
    if label.is_none_or(is_fine) {
        return Ok(());
    }
    let rule = "without control characters and white space around it";
    Err(EngineError::InvalidValue(format!("label must have 1 to {MAX_LABEL_CHARS} characters, {rule}")))
}

//! A session of the agent: how a turn gets it, and what is known of it.
//!
//! Always: a live session is used as it is; otherwise it is resumed or else loaded. A new one, whose id replaces the
//! old one, is created only if the agent says that the old session is gone, or supports neither. History that the agent
//! replays while it loads, or right after that, is ignored.

mod settings;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_client_protocol::Error;
use agent_client_protocol::v1::schema::{
    CloseSessionRequest, LoadSessionRequest, NewSessionRequest, ResumeSessionRequest,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::agent::Bridge;
use super::attempt::QUIET;
use super::lost::{self, not_restored, own_error};
use super::messages::Messages;
use super::turn::Turn;
use crate::agent_event::SessionOrigin;
use crate::driver::acp::wire::Own;
use crate::driver::relay::RelayedTurn;
use crate::options::SessionOptions;

/// Maximum sessions without a turn; beyond it those used longest ago are closed.
const MAX_IDLE_SESSIONS: usize = 256;
/// Pauses between the attempts to restore a session that may still exist.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
/// An agent that replayed nothing while it loaded a session begins to do so within this.
const PAST_BEGINS_WITHIN: Duration = Duration::from_secs(3);
/// The replay ends within this after the session is loaded.
const PAST_TOLD_WITHIN: Duration = Duration::from_secs(30);
/// A longer line is not kept for the next turn.
const MAX_UNSAID_BYTES: usize = 1024 * 1024;

/// A session of the agent.
pub(super) struct Session {
    /// Mainstay's own id of it.
    pub(super) ours: String,
    dir: PathBuf,
    /// What it has cost so far, in US dollars, if that is known.
    cost: Option<f64>,
    modes: Option<Value>,
    config_options: Option<Value>,
    /// The options that were sent to the agent.
    options: SessionOptions,
    /// The mode that it began in; none if unknown.
    first_mode: Option<String>,
    /// The newest title and commands that the agent reported while no turn was in the session.
    title: Option<String>,
    commands: Option<String>,
    /// The agent confirmed the session.
    is_ready: bool,
    used_at: Instant,
    /// When the agent last sent a part of the conversation while no turn was in the session: replayed history.
    past_at: Option<Instant>,
    messages: Messages,
    /// The turn in progress.
    pub(super) turn: Option<Turn>,
}

/// The kind of a session update.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Update {
    session_update: String,
    message_id: Option<Value>,
    tool_call_id: Option<Value>,
    status: Option<Value>,
}

impl Update {
    /// Whether it is part of the conversation, rather than about the session.
    fn is_said(&self) -> bool {
        self.session_update.ends_with("_chunk") || self.tool().is_some() || self.session_update == "plan"
    }

    /// The tool call that it is about, and whether that is over.
    fn tool(&self) -> Option<(&str, bool)> {
        if !self.session_update.starts_with("tool_call") {
            return None;
        }
        let status = self.status.as_ref().and_then(Value::as_str);
        let id = self.tool_call_id.as_ref().and_then(Value::as_str).unwrap_or_default();
        Some((id, matches!(status, Some("completed" | "failed"))))
    }

    fn message(&self) -> Option<&str> {
        self.message_id.as_ref().and_then(Value::as_str)
    }
}

impl Session {
    fn new(turn: &RelayedTurn, cost: Option<f64>) -> Self {
        Self {
            ours: turn.session.clone(),
            dir: turn.dir.clone(),
            cost,
            modes: None,
            config_options: None,
            options: SessionOptions::default(),
            first_mode: None,
            title: None,
            commands: None,
            is_ready: true,
            used_at: Instant::now(),
            past_at: None,
            messages: Messages::default(),
            turn: None,
        }
    }

    /// The receiver of its lines.
    pub(super) fn listener(&self) -> Option<mpsc::Sender<String>> {
        self.turn.as_ref().map(|turn| turn.lines.clone())
    }

    /// Takes the turn out of it.
    pub(super) fn end_turn(&mut self) -> Option<Turn> {
        let turn = self.turn.take()?;
        self.messages.end_turn();
        Some(turn)
    }

    /// Records an update; returns whether it belongs to the turn.
    fn is_of_turn(&mut self, update: &Update) -> bool {
        let Some(turn) = &mut self.turn else {
            if update.is_said() {
                self.past_at = Some(Instant::now());
                self.messages.passed(update.message());
            }
            return true;
        };
        if !update.is_said() {
            return true;
        }
        turn.heard_at = Instant::now();
        if let Some((tool, is_over)) = update.tool() {
            if is_over {
                turn.tools.remove(tool);
            } else {
                turn.tools.insert(tool.to_owned());
            }
        } else if update.session_update.starts_with("agent_") && !self.messages.is_of_turn(update.message()) {
            return false;
        }
        turn.has_said = true;
        true
    }

    /// Handles an update; returns its listener.
    pub(super) fn updated(&mut self, update: &Update, line: &str) -> Option<mpsc::Sender<String>> {
        if !self.is_of_turn(update) {
            return None;
        }
        let kind = update.session_update.as_str();
        let update = || {
            let message: Value = serde_json::from_str(line).unwrap_or_default();
            message["params"]["update"].clone()
        };
        let kept = || (line.len() <= MAX_UNSAID_BYTES).then(|| line.to_owned());
        let listener = self.listener();
        match kind {
            "usage_update" => {
                if let Some(cost) = update()["cost"]["amount"].as_f64() {
                    self.cost = Some(cost);
                }
            }
            "current_mode_update" => {
                if let Some(modes) = self.modes.as_mut().and_then(Value::as_object_mut) {
                    modes.insert("currentModeId".to_owned(), update()["currentModeId"].clone());
                }
            }
            "config_option_update" => self.config_options = Some(update()["configOptions"].clone()),
            "session_info_update" if listener.is_none() => self.title = kept(),
            "available_commands_update" if listener.is_none() => self.commands = kept(),
            _ => {}
        }
        listener
    }

    /// Handles the agent's answer to the prompt, with the line if it is an error; returns its listener. An error
    /// without prior output is kept as long as the session may be at fault.
    pub(super) fn answered(&mut self, error: Option<&str>) -> Option<mpsc::Sender<String>> {
        let listener = self.listener();
        let turn = self.turn.as_mut()?;
        if let Some(error) = error
            && turn.may_try_again
            && !turn.has_said
            && !turn.cancelled
        {
            turn.kept_error = Some(error.to_owned());
            return None;
        }
        turn.is_answered = true;
        listener
    }

    /// Records the modes and options in an answer.
    fn told(&mut self, answer: &Value) {
        for (known, key) in [(&mut self.modes, "modes"), (&mut self.config_options, "configOptions")] {
            if let Some(value) = answer.get(key).filter(|value| !value.is_null()) {
                *known = Some(value.clone());
            }
        }
    }

    /// What the turn's reader has to know of it: a line, and updates that arrived between turns.
    pub(super) fn introduction(&mut self, id: &str, origin: SessionOrigin) -> (Own, Vec<String>) {
        let own = Own::Session {
            id: id.to_owned(),
            origin,
            cost_before: self.cost,
            modes: self.modes.clone(),
            config_options: self.config_options.clone(),
        };
        (own, self.title.take().into_iter().chain(self.commands.take()).collect())
    }
}

impl Bridge {
    /// Gets the session of a turn.
    pub(super) async fn ensure(&self, turn: &RelayedTurn) -> Result<(String, SessionOrigin), Own> {
        if let Some(id) = &turn.agent_session {
            if self.is_live(id, turn) {
                return Ok((id.clone(), SessionOrigin::Reused));
            }
            if let Some(origin) = self.restore(id, turn).await.map_err(|error| not_restored(&error))? {
                return Ok((id.clone(), origin));
            }
        }
        self.create(turn).await.map_err(|error| own_error(&error))
    }

    /// Restores a session that is not live. None if the agent says that it is gone, or supports no way to restore it.
    /// Any other failure may be temporary and is retried: it is no reason to abandon a conversation.
    pub(super) async fn restore(&self, id: &str, turn: &RelayedTurn) -> Result<Option<SessionOrigin>, Error> {
        let can = &self.agent()?.agent_capabilities;
        let (can_resume, can_load) = (can.session_capabilities.resume.is_some(), can.load_session);
        let mut pauses = RETRY_PAUSES.into_iter();
        loop {
            let mut failure = None;
            if can_resume {
                let request = ResumeSessionRequest::new(id.to_owned(), turn.dir.clone());
                match self.take_up(id, turn, "session/resume", request).await {
                    Ok(()) => return Ok(Some(SessionOrigin::Resumed)),
                    Err(error) => failure = lost::may_pass(error, id)?,
                }
            }
            if can_load {
                let request = LoadSessionRequest::new(id.to_owned(), turn.dir.clone());
                match self.take_up(id, turn, "session/load", request).await {
                    Ok(()) => {
                        self.hear_past(id).await;
                        return Ok(Some(SessionOrigin::Loaded));
                    }
                    Err(error) => failure = lost::may_pass(error, id)?.or(failure),
                }
            }
            match (failure, pauses.next()) {
                (None, _) => return Ok(None),
                (Some(_), Some(pause)) => tokio::time::sleep(pause).await,
                (Some(error), None) => return Err(error),
            }
        }
    }

    /// Creates a new session.
    pub(super) async fn create(&self, turn: &RelayedTurn) -> Result<(String, SessionOrigin), Error> {
        let answer = self.ask("session/new", NewSessionRequest::new(turn.dir.clone())).await?;
        let id = answer["sessionId"].as_str().filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| Error::internal_error().data("it gave a session no id"))?.to_owned();
        let mut session = Session::new(turn, Some(0.0));
        session.told(&answer);
        session.first_mode = session.mode_now().map(str::to_owned);
        self.state().add(&id, session);
        self.make_room(&turn.session, &id).await;
        Ok((id, SessionOrigin::New))
    }

    /// Waits until the history is replayed: agents continue with it after they answered that the session is loaded.
    async fn hear_past(&self, id: &str) {
        let loaded = Instant::now();
        loop {
            let past_at = self.state().sessions.get(id).and_then(|session| session.past_at);
            let until = past_at.map_or(loaded + PAST_BEGINS_WITHIN, |at| at + QUIET).min(loaded + PAST_TOLD_WITHIN);
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until.into()).await;
        }
    }

    fn is_live(&self, id: &str, turn: &RelayedTurn) -> bool {
        let mut state = self.state();
        let session = state.sessions.get_mut(id);
        let is_it =
            |session: &&mut Session| session.is_ready && session.ours == turn.session && session.dir == turn.dir;
        session.filter(is_it).is_some_and(|session| {
            session.used_at = Instant::now();
            true
        })
    }

    /// Restores a session that the agent has stored, by one method.
    async fn take_up(
        &self,
        id: &str,
        turn: &RelayedTurn,
        method: &str,
        request: impl serde::Serialize,
    ) -> Result<(), Error> {
        let session = Session { is_ready: false, ..Session::new(turn, None) };
        self.state().add(id, session);
        let answer = self.ask(method, request).await;
        let mut state = self.state();
        match answer {
            Ok(answer) => {
                if let Some(session) = state.sessions.get_mut(id) {
                    session.is_ready = true;
                    session.told(&answer);
                }
                Ok(())
            }
            Err(error) => {
                state.sessions.remove(id);
                Err(error)
            }
        }
    }

    /// Closes the session that a new one replaces, and idle ones beyond the limit.
    async fn make_room(&self, ours: &str, but: &str) {
        let leaving: Vec<String> = {
            let state = self.state();
            let idle = state.sessions.iter().filter(|(id, session)| id.as_str() != but && session.turn.is_none());
            let mut idle: Vec<_> = idle.map(|(id, session)| (session.used_at, id, session.ours == ours)).collect();
            idle.sort();
            let excess = idle.len().saturating_sub(MAX_IDLE_SESSIONS);
            let leaving = idle.iter().enumerate().filter(|(index, (_, _, replaced))| *replaced || *index < excess);
            leaving.map(|(_, (_, id, _))| (*id).clone()).collect()
        };
        for id in leaving {
            self.close(&id).await;
        }
    }

    /// Forgets a session, and closes it if the agent supports that.
    pub(super) async fn close(&self, id: &str) {
        self.state().sessions.remove(id);
        let closes = self.agent().is_ok_and(|agent| agent.agent_capabilities.session_capabilities.close.is_some());
        if closes {
            let asked = self.ask("session/close", CloseSessionRequest::new(id.to_owned()));
            // For the bridge it is gone, whatever the agent answers.
            let _ = tokio::time::timeout(super::turn::CANCEL_TIMEOUT, asked).await;
        }
    }
}

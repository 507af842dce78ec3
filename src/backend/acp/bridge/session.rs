//! A session of the agent: how a turn comes by it, and what is known of it.
//!
//! Always: a live one is taken as it is; else it is resumed, else loaded, else there is a new one, whose id takes the place
//! of the old. What the agent tells again while it loads is not heard: it is the past.

use std::path::PathBuf;
use std::time::Instant;

use agent_client_protocol::Error;
use agent_client_protocol::v1::schema::{
    CloseSessionRequest, ErrorCode, LoadSessionRequest, NewSessionRequest, ResumeSessionRequest,
    SetSessionConfigOptionRequest, SetSessionModeRequest,
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::agent::Bridge;
use super::turn::Turn;
use crate::backend::SessionOrigin;
use crate::backend::acp::wire::Own;
use crate::backend::relay::RelayedTurn;
use crate::options::SessionOptions;

/// Sessions without a turn beyond these are closed, those first that were used longest ago.
const MAX_IDLE_SESSIONS: usize = 256;
/// A longer text is not kept for the next turn.
const MAX_UNSAID_BYTES: usize = 1024 * 1024;

/// A session of the agent.
pub(super) struct Session {
    /// Our own id of it.
    pub(super) ours: String,
    dir: PathBuf,
    /// What it cost so far, in US dollars, if that is known.
    cost: Option<f64>,
    modes: Option<Value>,
    config_options: Option<Value>,
    /// What the agent was told.
    options: SessionOptions,
    /// The title and the commands that it said while nobody listened, the newest of each.
    title: Option<String>,
    commands: Option<String>,
    /// The agent said that it is there.
    is_ready: bool,
    used_at: Instant,
    /// The turn that is in it.
    pub(super) turn: Option<Turn>,
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
            title: None,
            commands: None,
            is_ready: true,
            used_at: Instant::now(),
            turn: None,
        }
    }

    /// Where what is said of it goes.
    pub(super) fn listener(&self) -> Option<mpsc::Sender<String>> {
        self.turn.as_ref().filter(|turn| !turn.is_answered).map(|turn| turn.lines.clone())
    }

    /// Takes an update; who listens to it.
    pub(super) fn updated(&mut self, kind: &str, line: &str) -> Option<mpsc::Sender<String>> {
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

    /// The agent answered the prompt; who listens to that.
    pub(super) fn answered(&mut self) -> Option<mpsc::Sender<String>> {
        let listener = self.listener();
        if let Some(turn) = &mut self.turn {
            turn.is_answered = true;
        }
        listener
    }

    /// What the agent said of it when it gave or set it.
    fn told(&mut self, answer: &Value) {
        for (known, key) in [(&mut self.modes, "modes"), (&mut self.config_options, "configOptions")] {
            if let Some(value) = answer.get(key).filter(|value| !value.is_null()) {
                *known = Some(value.clone());
            }
        }
    }

    /// What the turn's reader has to know of it: a line, and what nobody heard.
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

    /// What has to be said to the agent for a session to be as it is wanted: method and parameters. What the agent does not
    /// offer is not said.
    fn settings(&self, id: &str, wanted: &SessionOptions) -> Vec<Setting> {
        let mut settings = Vec::new();
        let known = &self.options;
        if let Some(mode) = wanted.mode.as_ref().filter(|_| known.mode != wanted.mode) {
            settings.extend(self.config_option(id, "mode", mode).or_else(|| self.mode(id, mode)));
        }
        if let Some(model) = wanted.model.as_ref().filter(|_| known.model != wanted.model) {
            settings.extend(self.config_option(id, "model", model));
        }
        if let Some(profile) =
            wanted.permission_profile.as_ref().filter(|_| known.permission_profile != wanted.permission_profile)
        {
            settings.extend(self.config_option(id, "permission_profile", profile));
        }
        for (key, value) in wanted.extra.iter().filter(|(key, value)| known.extra.get(*key) != Some(*value)) {
            settings.extend(self.config_option(id, key, value));
        }
        settings
    }

    fn mode(&self, id: &str, mode: &str) -> Option<Setting> {
        let offered = self.modes.as_ref()?["availableModes"].as_array()?;
        let is_offered = offered.iter().any(|offered| offered["id"] == mode);
        is_offered.then(|| Setting::Mode(SetSessionModeRequest::new(id.to_owned(), mode.to_owned())))
    }

    /// An option is known by its id, or by its category.
    fn config_option(&self, id: &str, key: &str, value: &str) -> Option<Setting> {
        let options = self.config_options.as_ref()?.as_array()?;
        let by = |field: &str| options.iter().find(|option| option[field] == key);
        let option = by("id").or_else(|| by("category"))?;
        let config_id = option["id"].as_str()?.to_owned();
        let request = if option["type"] == "boolean" {
            SetSessionConfigOptionRequest::new(id.to_owned(), config_id, value.parse::<bool>().ok()?)
        } else {
            let entries = option["options"].as_array()?.iter();
            let values = entries.flat_map(|entry| match entry["options"].as_array() {
                Some(group) => group.iter().collect::<Vec<_>>(),
                None => vec![entry],
            });
            values.into_iter().find(|offered| offered["value"] == value)?;
            SetSessionConfigOptionRequest::new(id.to_owned(), config_id, value)
        };
        Some(Setting::ConfigOption(request))
    }
}

enum Setting {
    Mode(SetSessionModeRequest),
    ConfigOption(SetSessionConfigOptionRequest),
}

impl Bridge {
    /// Comes by the session of a turn.
    pub(super) async fn ensure(&self, turn: &RelayedTurn) -> Result<(String, SessionOrigin), Error> {
        if let Some(id) = &turn.agent_session {
            if self.is_live(id, turn) {
                return Ok((id.clone(), SessionOrigin::Reused));
            }
            let can = &self.agent()?.agent_capabilities;
            let (can_resume, can_load) = (can.session_capabilities.resume.is_some(), can.load_session);
            if can_resume {
                let request = ResumeSessionRequest::new(id.clone(), turn.dir.clone());
                match self.take_up(id, turn, "session/resume", request).await {
                    Ok(()) => return Ok((id.clone(), SessionOrigin::Resumed)),
                    Err(error) if error.code == ErrorCode::AuthRequired => return Err(error),
                    Err(_) => {}
                }
            }
            if can_load {
                let request = LoadSessionRequest::new(id.clone(), turn.dir.clone());
                match self.take_up(id, turn, "session/load", request).await {
                    Ok(()) => return Ok((id.clone(), SessionOrigin::Loaded)),
                    Err(error) if error.code == ErrorCode::AuthRequired => return Err(error),
                    Err(_) => {}
                }
            }
        }
        let answer = self.ask("session/new", NewSessionRequest::new(turn.dir.clone())).await?;
        let id = answer["sessionId"].as_str().filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| Error::internal_error().data("it gave a session no id"))?.to_owned();
        let mut session = Session::new(turn, Some(0.0));
        session.told(&answer);
        self.state().add(&id, session);
        self.make_room(&turn.session, &id).await;
        Ok((id, SessionOrigin::New))
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

    /// Takes up a session that the agent has stored.
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

    /// Makes a session as its options want it.
    pub(super) async fn apply(&self, id: &str, wanted: &SessionOptions) -> Result<(), Error> {
        let settings = match self.state().sessions.get_mut(id) {
            Some(session) => {
                let settings = session.settings(id, wanted);
                if !settings.is_empty() {
                    // Until all is done it is not known what the agent made of it.
                    session.options = SessionOptions::default();
                }
                settings
            }
            None => Vec::new(),
        };
        for setting in settings {
            let answer = match setting {
                Setting::Mode(request) => self.ask("session/set_mode", request).await?,
                Setting::ConfigOption(request) => self.ask("session/set_config_option", request).await?,
            };
            if let Some(session) = self.state().sessions.get_mut(id) {
                session.told(&answer);
            }
        }
        if let Some(session) = self.state().sessions.get_mut(id) {
            session.options = wanted.clone();
            if let (Some(mode), Some(modes)) = (&wanted.mode, session.modes.as_mut().and_then(Value::as_object_mut)) {
                modes.insert("currentModeId".to_owned(), mode.clone().into());
            }
        }
        Ok(())
    }

    /// Closes what a new session takes the place of, and what nobody used for long.
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

    /// Lets go of a session, and tells the agent if it wants to know.
    pub(super) async fn close(&self, id: &str) {
        self.state().sessions.remove(id);
        let closes = self.agent().is_ok_and(|agent| agent.agent_capabilities.session_capabilities.close.is_some());
        if closes {
            let asked = self.ask("session/close", CloseSessionRequest::new(id.to_owned()));
            // It is gone for us, whatever the agent makes of it.
            let _ = tokio::time::timeout(super::turn::PATIENCE, asked).await;
        }
    }
}

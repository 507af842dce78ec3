//! A turn in a session of the agent, and its retries if it fails there without any output.
//!
//! Always: a conversation is abandoned only if the agent says that it is gone, and the user is told. What the agent
//! sends right behind its answer belongs to the turn.

use std::time::{Duration, Instant};

use agent_client_protocol::Error;
use agent_client_protocol::v1::schema::ContentBlock;
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::agent::Bridge;
use super::content;
use super::lost::{self, own_error};
use super::turn::{CANCEL_TIMEOUT, Turn, sentence, tell};
use crate::agent_event::SessionOrigin;
use crate::driver::acp::wire::{self, Own};
use crate::driver::relay::RelayedTurn;
use crate::failure::ErrorClass;

/// How long an agent may take to provide a session: it may have to read a long history.
const SESSION_WITHIN: Duration = Duration::from_secs(120);
/// Longest pause between messages that belong to an answer: what the agent said before it and what it sends behind it.
pub(super) const QUIET: Duration = Duration::from_millis(300);
/// The same while a tool is in progress, for its result.
const TOOLS_END_WITHIN: Duration = Duration::from_secs(1);
/// Limit for all late messages together.
const LATE_WITHIN: Duration = Duration::from_secs(3);
/// A turn that failed without output is tried in the session as it is, in the same session restored, and in a new one.
const MAX_TRIES: usize = 3;
/// The notice to the user about a new session.
const MEMORY_LOST: &str =
    "The agent could not go on in its earlier conversation: it does not remember what was said before this message.";

/// A turn that failed without output.
struct Failed {
    error: Error,
    /// The agent's answer, as a line.
    line: String,
}

impl Bridge {
    /// Executes a turn: gets a session, prompts the agent in it, and retries if the session was at fault.
    pub(super) async fn go(
        &self,
        turn: &RelayedTurn,
        lines: &mpsc::Sender<String>,
        cancelled: &CancellationToken,
    ) -> Result<(), Own> {
        let takes = self.agent().map_err(|error| own_error(&error))?.agent_capabilities.prompt_capabilities.clone();
        let prompt = content::blocks(turn, &takes).map_err(|refusal| Own::error(None, refusal))?;
        let (mut id, mut origin) = match self.in_time(self.ensure(turn), cancelled).await? {
            Some(ensured) => ensured?,
            None => return Ok(()),
        };
        let mut result = Ok(None);
        for number in 1..=MAX_TRIES {
            result = self.turn_in(&id, origin, prompt.clone(), turn, lines, cancelled).await;
            let Ok(Some(failed)) = &result else { break };
            let next = match number {
                MAX_TRIES => None,
                _ => self.in_time(self.after(failed, &id, origin, turn, lines), cancelled).await?.flatten(),
            };
            let Some(next) = next else {
                // Its relay may be gone.
                let _ = lines.send(failed.line.clone()).await;
                break;
            };
            (id, origin) = next;
        }
        if turn.oneshot && !matches!(result, Err(Own::Left)) {
            self.close(&id).await;
        }
        result.map(|_| ())
    }

    /// Waits for work that the agent has to do within a limit. None if the turn is cancelled first; the result is
    /// ignored then.
    async fn in_time<T>(&self, work: impl Future<Output = T>, cancelled: &CancellationToken) -> Result<Option<T>, Own> {
        let done = tokio::select! {
            done = timeout(SESSION_WITHIN, work) => done,
            () = cancelled.cancelled() => return Ok(None),
        };
        done.map(Some).map_err(|_| {
            self.give_up(format!("the agent did not give a session within {SESSION_WITHIN:?}"));
            Own::error(ErrorClass::Crashed, "The agent did not give a session in time.")
        })
    }

    /// The session for another attempt at a turn that failed without output: the same session restored, or a new one if
    /// the agent says that this one is gone. None if neither would help.
    async fn after(
        &self,
        failed: &Failed,
        id: &str,
        origin: SessionOrigin,
        turn: &RelayedTurn,
        lines: &mpsc::Sender<String>,
    ) -> Option<(String, SessionOrigin)> {
        let is_gone = lost::is_gone(&failed.error, id);
        if origin == SessionOrigin::Reused && lost::may_be_the_session(&failed.error) {
            match self.restore(id, turn).await {
                Ok(Some(origin)) => return Some((id.to_owned(), origin)),
                Ok(None) => {}
                Err(_) => return None,
            }
        }
        if !is_gone {
            return None;
        }
        let created = self.create(turn).await.ok()?;
        tell(lines, &Own::Notice { text: MEMORY_LOST.to_owned() }).await;
        Some(created)
    }

    /// Executes a turn in a session. Returns the agent's error if the session may be at fault.
    async fn turn_in(
        &self,
        id: &str,
        origin: SessionOrigin,
        prompt: Vec<ContentBlock>,
        turn: &RelayedTurn,
        lines: &mpsc::Sender<String>,
        cancelled: &CancellationToken,
    ) -> Result<Option<Failed>, Own> {
        let applied = tokio::select! {
            applied = timeout(SESSION_WITHIN, self.apply(id, &turn.options, &turn.rules)) => applied,
            // The session is reported even so, so that the next turn continues it.
            () = cancelled.cancelled() => Ok(Ok(())),
        };
        let begun = {
            let mut state = self.state();
            state.sessions.get_mut(id).map(|session| {
                session.turn = Some(Turn::new(lines.clone(), turn, origin));
                session.introduction(id, origin)
            })
        };
        let Some((introduction, unsaid)) = begun else {
            return Err(Own::error(ErrorClass::Crashed, "The agent's session was closed before the turn began."));
        };
        tell(lines, &introduction).await;
        for line in unsaid {
            // Its relay may be gone.
            let _ = lines.send(line).await;
        }
        let result = match applied {
            Ok(Ok(())) if cancelled.is_cancelled() => Ok(None),
            Ok(Ok(())) => self.prompt(id, prompt, turn, lines, cancelled).await,
            Ok(Err(error)) => Err(own_error(&error)),
            Err(_) => {
                Err(Own::error(ErrorClass::Crashed, "The agent did not take the options of the session in time."))
            }
        };
        if let Some(session) = self.state().sessions.get_mut(id) {
            session.end_turn();
        }
        result
    }

    /// Prompts the agent and waits for its answer, which goes to the relay in its place among the updates.
    async fn prompt(
        &self,
        id: &str,
        prompt: Vec<ContentBlock>,
        turn: &RelayedTurn,
        lines: &mpsc::Sender<String>,
        cancelled: &CancellationToken,
    ) -> Result<Option<Failed>, Own> {
        let begun = Instant::now();
        let mut answer = std::pin::pin!(self.ask_for_turn(id, prompt, turn));
        let answered = tokio::select! {
            answered = &mut answer => Some(answered),
            () = cancelled.cancelled() => {
                // The agent is told even if the relay does not read.
                let _ = lines.try_send(wire::line(&Own::Cancelling));
                self.cancel(id);
                timeout(CANCEL_TIMEOUT, answer).await.ok()
            }
        };
        let kept = self.state().sessions.get_mut(id).and_then(|session| session.turn.as_mut()?.kept_error.take());
        if kept.is_none() && !cancelled.is_cancelled() {
            self.hear_late(id, cancelled).await;
        }
        let terminals =
            self.state().sessions.get(id).and_then(|session| Some(session.turn.as_ref()?.terminals.clone()));
        if let Some(terminals) = terminals {
            terminals.end().await;
        }
        match (answered, kept) {
            (None, _) => {
                self.give_up(format!("the agent did not end a cancelled turn within {CANCEL_TIMEOUT:?}"));
                Err(Own::Left)
            }
            (Some(_), _) if cancelled.is_cancelled() => {
                self.clean_up(begun).await;
                Ok(None)
            }
            (Some(Err(error)), Some(line)) => Ok(Some(Failed { error, line })),
            // An error answer was already passed on when it arrived. Any other error comes from the connection.
            (Some(Err(error)), None) if !self.is_answered(&turn.session) => {
                if agent_client_protocol::is_incoming_transport_closed(&error) {
                    return Err(Own::error(ErrorClass::Crashed, sentence(&self.process.ended().await)));
                }
                Err(own_error(&error))
            }
            (Some(_), _) => Ok(None),
        }
    }

    /// Waits for late messages around the answer: pieces of the message, and results of tools.
    async fn hear_late(&self, id: &str, cancelled: &CancellationToken) {
        let answered = Instant::now();
        loop {
            let until = {
                let state = self.state();
                let Some(turn) = state.sessions.get(id).and_then(|session| session.turn.as_ref()) else { return };
                let quiet = if turn.tools.is_empty() { QUIET } else { TOOLS_END_WITHIN };
                (turn.heard_at.max(answered) + quiet).min(answered + LATE_WITHIN)
            };
            if Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = sleep_until(until.into()) => {}
                () = cancelled.cancelled() => return,
            }
        }
    }
}

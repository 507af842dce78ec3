//! A turn of a relay: from its prompt to the agent's answer.
//!
//! Always: it is the only turn in its session. It is cancelled when its relay says so or is gone; an agent that does
//! not answer a cancelled prompt in time is ended. It is over only when everything that it left running is.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_client_protocol::Error;
use agent_client_protocol::v1::Responder;
use futures_util::FutureExt;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use rustix::time::Timespec;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::agent::Bridge;
use super::client::{SessionDir, Terminals};
use super::session::Session;
use crate::agent_event::SessionOrigin;
use crate::driver::acp::wire::{self, Answer, MAX_LINE_BYTES, Own, ToBridge};
use crate::driver::relay::RelayedTurn;
use crate::failure::ErrorClass;
use crate::process::reap;
use crate::run::Attempt;

/// How long an agent may take for what it should do at once, such as ending a cancelled turn.
pub(super) const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a turn waits for a cancelled one to leave the session, with everything that it left running.
const ENTERS_WITHIN: Duration = Duration::from_secs(15);
/// Lines that may wait for a relay.
const LINES_WAITING: usize = 16;
/// Accuracy of a process's start time.
const STARTED_WITHIN: Duration = Duration::from_millis(10);
/// Requests for permission that may wait in one turn.
pub(super) const MAX_OPEN_REQUESTS: usize = 64;

/// The turn in a session.
pub(super) struct Turn {
    /// Lines for its relay.
    pub(super) lines: mpsc::Sender<String>,
    /// The agent answered the prompt. Output from before that may arrive a moment later.
    pub(super) is_answered: bool,
    /// Whether the session may be at fault if the prompt fails without output.
    pub(super) may_try_again: bool,
    /// The line of that failure.
    pub(super) kept_error: Option<String>,
    /// Whether there was any output, and when the last of it arrived.
    pub(super) has_said: bool,
    pub(super) heard_at: Instant,
    /// Tools in progress.
    pub(super) tools: HashSet<String>,
    pub(super) cancelled: bool,
    /// Open requests for permission, by their id.
    pub(super) open: HashMap<String, Responder>,
    /// Requests that were decided before the protocol library handled them.
    pub(super) decided: HashMap<String, Option<String>>,
    /// The commands that run for the agent.
    pub(super) terminals: Arc<Terminals>,
}

impl Turn {
    pub(super) fn new(lines: mpsc::Sender<String>, turn: &RelayedTurn, origin: SessionOrigin) -> Self {
        Self {
            lines,
            is_answered: false,
            may_try_again: origin != SessionOrigin::New,
            kept_error: None,
            has_said: false,
            heard_at: Instant::now(),
            tools: HashSet::new(),
            cancelled: false,
            open: HashMap::new(),
            decided: HashMap::new(),
            terminals: Arc::new(Terminals::new(SessionDir::of(turn))),
        }
    }

    /// Keeps a request for permission until it is decided. A request that cannot be decided is cancelled.
    pub(super) fn permission(turn: Option<&mut Self>, params: &Value, responder: Responder) -> Result<(), Error> {
        let waits = turn.filter(|turn| !turn.cancelled && !turn.is_answered && turn.open.len() < MAX_OPEN_REQUESTS);
        let Some(turn) = waits.filter(|_| !crate::driver::acp::parser::options(params).is_empty()) else {
            return responder.respond(outcome(None));
        };
        let id = serde_json::to_string(responder.raw_id())?;
        match turn.decided.remove(&id) {
            Some(option) => responder.respond(outcome(option.as_deref())),
            None => {
                turn.open.insert(id, responder);
                Ok(())
            }
        }
    }
}

/// The answer to the agent for a decision.
pub(super) fn outcome(option: Option<&str>) -> Value {
    match option {
        Some(option) => json!({"outcome": {"outcome": "selected", "optionId": option}}),
        None => json!({"outcome": {"outcome": "cancelled"}}),
    }
}

impl Bridge {
    /// Serves the connection of a relay, or a single question.
    pub(super) async fn relayed(&self, stream: UnixStream) {
        // No file descriptor is left.
        let Ok(caller) = stream.as_fd().try_clone_to_owned() else { return };
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        match hear(&mut reader).await {
            Some(ToBridge::Turn(turn)) => self.relay(*turn, reader, writer, &caller).await,
            Some(ToBridge::Ping) => {
                // The caller may be gone.
                let _ = writer.write_all(format!("{}\n", wire::line(&Own::Ready)).as_bytes()).await;
            }
            Some(ToBridge::EndTurn(session)) => {
                // The turn was cancelled when its relay disconnected.
                if timeout(ENTERS_WITHIN, self.enter(&session)).await.is_err() {
                    return;
                }
                self.leave(&session);
                // If the agent has to be ended because it did not end the turn, the turn is over only when the agent is
                // dead.
                if self.lost().now_or_never().is_none() {
                    let _ = writer.write_all(format!("{}\n", wire::line(&Own::Ended)).as_bytes()).await;
                }
            }
            Some(ToBridge::Answer(_) | ToBridge::Cancel) | None => {}
        }
    }

    async fn relay(
        &self,
        turn: RelayedTurn,
        reader: BufReader<OwnedReadHalf>,
        writer: OwnedWriteHalf,
        caller: &OwnedFd,
    ) {
        let (lines, waiting) = mpsc::channel(LINES_WAITING);
        let cancelled = CancellationToken::new();
        let conduct = async {
            let entered = tokio::select! {
                entered = timeout(ENTERS_WITHIN, self.enter(&turn.session)) => entered.is_ok(),
                () = cancelled.cancelled() => return tell(&lines, &Own::Ended).await,
            };
            if entered {
                // If this relay is gone, an `EndTurn` request that waited ahead of it may have reported the turn as over, so
                // the turn must not begin.
                if !is_gone(caller) {
                    self.conduct(&turn, lines, &cancelled).await;
                }
                self.leave(&turn.session);
            } else {
                tell(&lines, &Own::error(None, "The session is still busy with another turn.")).await;
                tell(&lines, &Own::Ended).await;
            }
        };
        tokio::select! {
            ((), ()) = async { tokio::join!(conduct, write(waiting, writer)) } => {}
            never = self.listen(&turn.session, reader, &cancelled) => match never {},
        }
    }

    /// Waits until no other turn is in the session: a turn whose relay was killed takes a moment to end.
    async fn enter(&self, ours: &str) {
        loop {
            let freed = self.freed.notified();
            if self.state().busy.insert(ours.to_owned()) {
                return;
            }
            freed.await;
        }
    }

    fn leave(&self, ours: &str) {
        self.state().busy.remove(ours);
        self.freed.notify_waiters();
    }

    /// Handles the relay's messages. A relay that disconnects cancels its turn.
    async fn listen(
        &self,
        ours: &str,
        mut reader: BufReader<OwnedReadHalf>,
        cancelled: &CancellationToken,
    ) -> std::convert::Infallible {
        while let Some(said) = hear(&mut reader).await {
            match said {
                ToBridge::Answer(Answer { request, option }) => self.decided(ours, request, option),
                ToBridge::Cancel => cancelled.cancel(),
                ToBridge::Ping | ToBridge::Turn(_) | ToBridge::EndTurn(_) => {}
            }
        }
        cancelled.cancel();
        std::future::pending().await
    }

    async fn conduct(&self, turn: &RelayedTurn, lines: mpsc::Sender<String>, cancelled: &CancellationToken) {
        let crashed = |reason: String| Own::error(ErrorClass::Crashed, sentence(&reason));
        let mut end = Own::Ended;
        let result = match self.lost().now_or_never() {
            // The previous turn may still be in progress in an agent that has to be ended for not ending it.
            Some(reason) => Err(crashed(reason)),
            None => tokio::select! {
                // An answer that has arrived counts,
                biased;
                result = self.go(turn, &lines, cancelled) => result,
                // even if the agent ended right behind it.
                reason = self.lost() => match self.is_answered(&turn.session) {
                    true => Ok(()),
                    false => {
                        if self.has_given_up() {
                            end = Own::Left;
                        }
                        Err(crashed(reason))
                    }
                },
            },
        };
        // A turn that was aborted is still in its session, and would keep its relay waiting.
        for session in self.state().sessions.values_mut().filter(|session| session.ours == turn.session) {
            session.end_turn();
        }
        match result {
            Ok(()) => {}
            Err(Own::Left) => end = Own::Left,
            Err(error) => tell(&lines, &error).await,
        }
        tell(&lines, &end).await;
    }

    /// Whether the agent answered the prompt of the turn in this session.
    pub(super) fn is_answered(&self, ours: &str) -> bool {
        let state = self.state();
        let turn = |session: &Session| session.turn.as_ref().is_some_and(|turn| turn.is_answered);
        state.sessions.values().any(|session| session.ours == ours && turn(session))
    }

    /// Ends processes that started since a cancelled turn began: agents leave tools running. Only while no other turn
    /// is in progress, whose tools they could be.
    pub(super) async fn clean_up(&self, begun: Instant) {
        let Some(attempt) = own_attempt() else { return };
        let agent = self.process.identity().cloned();
        for signal in [Signal::TERM, Signal::KILL] {
            if self.state().busy.len() > 1 {
                return;
            }
            let agent = agent.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let mut left = reap::survivors(attempt.into(), None);
                // Time passes during the scan, so the age is compared with the time elapsed now.
                let is_new = |process: &_| reap::age(process) < begun.elapsed() + STARTED_WITHIN;
                left.retain(|process| Some(process) != agent.as_ref() && is_new(process));
                left.iter().for_each(|process| reap::send(process, signal));
                left
            });
            // Fails only when the runtime shuts down.
            let left = looked.await.unwrap_or_default();
            let gone_by = tokio::time::Instant::now() + Duration::from_secs(1);
            while left.iter().any(|process| reap::is_alive(process) == reap::Liveness::Alive)
                && tokio::time::Instant::now() < gone_by
            {
                sleep_until(tokio::time::Instant::now() + Duration::from_millis(10)).await;
            }
        }
    }
}

/// Whether the other end of a connection is closed.
fn is_gone(caller: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(caller, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The marker that this process carries, and so everything that the agent starts.
fn own_attempt() -> Option<Attempt> {
    let run = std::env::var(reap::MARKER).ok()?.parse().ok()?;
    let number = std::env::var(reap::ATTEMPT_MARKER).ok()?.parse().ok()?;
    Some(Attempt { run, number })
}

pub(super) fn sentence(reason: &str) -> String {
    let mut letters = reason.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect::<String>() + ".")
}

pub(super) async fn tell(lines: &mpsc::Sender<String>, own: &Own) {
    // The relay may be gone.
    let _ = lines.send(wire::line(own)).await;
}

async fn hear(reader: &mut BufReader<OwnedReadHalf>) -> Option<ToBridge> {
    let mut line = String::new();
    let read = reader.take(MAX_LINE_BYTES).read_line(&mut line).await.ok()?;
    if read == 0 { None } else { serde_json::from_str(&line).ok() }
}

/// Writes the lines of a turn to its relay. If the relay is gone, they are dropped.
async fn write(mut waiting: mpsc::Receiver<String>, mut relay: OwnedWriteHalf) {
    let mut is_there = true;
    while let Some(mut line) = waiting.recv().await {
        line.push('\n');
        is_there = is_there && relay.write_all(line.as_bytes()).await.is_ok();
    }
}

//! A turn of a relay: from its prompt to the agent's answer.
//!
//! Always: it is in one session alone. It is cancelled when its relay says so or is gone; an agent that does not answer a
//! cancelled prompt in time is ended. It is over only when what it left running is.

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

/// An agent has so long for what it does at once, such as to end a cancelled turn.
pub(super) const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// A turn that was cancelled is out of its session within so long, with all that it left running.
const ENTERS_WITHIN: Duration = Duration::from_secs(15);
/// Lines that wait for a relay.
const LINES_WAITING: usize = 16;
/// When a process was started is known this exactly.
const STARTED_WITHIN: Duration = Duration::from_millis(10);
/// Requests that wait for a person in one turn.
pub(super) const MAX_OPEN_REQUESTS: usize = 64;

/// The turn that is in a session.
pub(super) struct Turn {
    /// To its relay.
    pub(super) lines: mpsc::Sender<String>,
    /// The agent answered the prompt. What it said before that may come a moment later.
    pub(super) is_answered: bool,
    /// The session may be at fault when the prompt fails before anything is said.
    pub(super) may_try_again: bool,
    /// The line with which it failed so.
    pub(super) kept_error: Option<String>,
    /// Whether anything was said, and when the last of it was.
    pub(super) has_said: bool,
    pub(super) heard_at: Instant,
    /// Tools at work.
    pub(super) tools: HashSet<String>,
    pub(super) cancelled: bool,
    /// Requests for permission that wait, by their id.
    pub(super) open: HashMap<String, Responder>,
    /// Requests that were decided before the protocol came to them.
    pub(super) decided: HashMap<String, Option<String>>,
    /// What runs on the agent's behalf.
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

    /// Keeps a request for permission until it is decided. Where nobody could decide, it is cancelled.
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

/// What the agent is told of a decision.
pub(super) fn outcome(option: Option<&str>) -> Value {
    match option {
        Some(option) => json!({"outcome": {"outcome": "selected", "optionId": option}}),
        None => json!({"outcome": {"outcome": "cancelled"}}),
    }
}

impl Bridge {
    /// Serves a relay, or answers a ping.
    pub(super) async fn relayed(&self, stream: UnixStream) {
        // No file descriptor is left.
        let Ok(caller) = stream.as_fd().try_clone_to_owned() else { return };
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        match hear(&mut reader).await {
            Some(ToBridge::Turn(turn)) => self.relay(*turn, reader, writer, &caller).await,
            Some(ToBridge::Ping) => {
                // Whoever asked may be gone.
                let _ = writer.write_all(format!("{}\n", wire::line(&Own::Ready)).as_bytes()).await;
            }
            Some(ToBridge::EndTurn(session)) => {
                // It was cancelled when its relay went.
                if timeout(ENTERS_WITHIN, self.enter(&session)).await.is_err() {
                    return;
                }
                self.leave(&session);
                // In an agent that has to end because it did not end the turn, that is over when it is dead.
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
                // Whoever waited for its end before us must not see it begin.
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

    /// Waits until no other turn is in a session of ours: one whose relay was killed takes a moment to end.
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

    /// Takes what the relay says. A relay that is gone wants its turn to end.
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
            // The turn before may still go on in an agent that has to end because it did not end that.
            Some(reason) => Err(crashed(reason)),
            None => tokio::select! {
                // An answer that came counts.
                biased;
                result = self.go(turn, &lines, cancelled) => result,
                // Also when the agent ended right behind it.
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
        // A turn that was broken off is still there, and would keep its relay waiting.
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

    /// Whether the agent answered the prompt of the turn that is in a session of ours.
    pub(super) fn is_answered(&self, ours: &str) -> bool {
        let state = self.state();
        let turn = |session: &Session| session.turn.as_ref().is_some_and(|turn| turn.is_answered);
        state.sessions.values().any(|session| session.ours == ours && turn(session))
    }

    /// Ends what came to run since a cancelled turn began: agents leave tools running. Only while no other turn is there
    /// whose tools they could be.
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
                // The time goes on while they are looked for.
                let is_new = |process: &_| reap::age(process) < begun.elapsed() + STARTED_WITHIN;
                left.retain(|process| Some(process) != agent.as_ref() && is_new(process));
                left.iter().for_each(|process| reap::send(process, signal));
                left
            });
            // It fails only when the runtime goes down.
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

/// Whether nobody is at the other end of a connection any more.
fn is_gone(caller: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(caller, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The marker that we carry, and so everything that the agent starts.
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

/// Writes to a relay what is said of its turn. What a relay that is gone would have been told goes nowhere.
async fn write(mut waiting: mpsc::Receiver<String>, mut relay: OwnedWriteHalf) {
    let mut is_there = true;
    while let Some(mut line) = waiting.recv().await {
        line.push('\n');
        is_there = is_there && relay.write_all(line.as_bytes()).await.is_ok();
    }
}

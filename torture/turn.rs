//! A turn of an agent that serves many turns, in any protocol.
//!
//! Always: while a turn runs it holds a lock on its session, its slot and its conversation; what it says is in the
//! record of its run.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use procfs::process::Process;
use rustix::process::{Signal, getpid, kill_process};
use serde_json::Value;

use super::agent::{Behaviour, End, claim, leave_behind};
use super::protocol::{Encoder, Ending};
use super::record::{Identity, Line, RecordWriter};
use super::voice::{LineSink, Next, Voice};

/// How much later a delayed cancel ends the turn.
pub(super) const CANCEL_DELAY: Duration = Duration::from_millis(400);
/// The range of word numbers of one turn; the turns of a process use consecutive ranges.
const WORDS_OF_TURN: u32 = 1000;

/// What a turn is for.
pub(super) struct Purpose {
    pub(super) run: String,
    pub(super) attempt: i64,
    pub(super) session: String,
    pub(super) slot: String,
    /// The agent's own id of the conversation.
    pub(super) conversation: String,
    /// Whether an engine ends the processes that the agent leaves behind.
    pub(super) is_held: bool,
    /// The seed in the message.
    pub(super) seed: u64,
}

impl Purpose {
    /// From what Mainstay's clients send with a prompt.
    pub(super) fn from_prompt(told: &Value, conversation: String, seed: u64) -> anyhow::Result<Self> {
        let text = |key: &str| told[key].as_str().map(str::to_owned).context("a prompt says which run it is of");
        let attempt = told["attempt"].as_i64().context("a prompt says which try it is")?;
        Ok(Self {
            run: text("run")?,
            attempt,
            session: text("session")?,
            slot: text("slot")?,
            conversation,
            is_held: true,
            seed,
        })
    }
}

/// A turn that has not ended.
pub(super) struct Turn {
    pub(super) conversation: String,
    pub(super) behaviour: Behaviour,
    voice: Voice,
    _places: [File; 3],
    /// When it continues; none while it waits for an answer or a cancel.
    pub(super) due: Option<Instant>,
    is_cancelled: bool,
}

impl Turn {
    /// Begins the turn with this number in the process.
    pub(super) fn begin(
        records: &Path,
        purpose: Purpose,
        number: u32,
        encoder: Box<dyn Encoder>,
        sink: LineSink,
    ) -> anyhow::Result<Self> {
        let Purpose { run, attempt, session, slot, conversation, is_held, seed } = purpose;
        let pid = std::process::id();
        let started_at_ticks = Process::myself()?.stat()?.starttime;
        let identity = Identity { run, attempt, session, slot, pid, started_at_ticks };
        let mut rng = fastrand::Rng::with_seed(seed);
        let behaviour = Behaviour::choose(&mut rng);
        if let Some(stray) = behaviour.stray.filter(|_| is_held) {
            leave_behind(stray)?;
        }
        let mut record = RecordWriter::create(records, &identity)?;
        let places = [
            claim(records, &mut record, "session", &identity.session)?,
            claim(records, &mut record, "slot", &identity.slot)?,
            claim(records, &mut record, "conversation", &conversation)?,
        ];
        let voice = Voice::new(rng, record, number * WORDS_OF_TURN, encoder, sink);
        Ok(Self { conversation, behaviour, voice, _places: places, due: Some(Instant::now()), is_cancelled: false })
    }

    /// Handles a line that may be the answer to its question.
    pub(super) fn hear(&mut self, line: &Value) -> io::Result<bool> {
        let is_answer = self.voice.hear(line)?;
        if is_answer && !self.is_cancelled {
            self.due = Some(Instant::now());
        }
        Ok(is_answer)
    }

    pub(super) fn cancel(&mut self) -> io::Result<()> {
        if !self.is_cancelled {
            self.is_cancelled = true;
            self.due = Some(Instant::now() + if self.behaviour.delays_cancel { CANCEL_DELAY } else { Duration::ZERO });
            self.voice.say_cancelling()?;
        }
        Ok(())
    }

    /// Says one thing, if it is due. Returns how the turn ended, if it has.
    pub(super) fn step(&mut self, now: Instant) -> anyhow::Result<Option<Ending>> {
        if self.due.is_none_or(|due| due > now) {
            return Ok(None);
        }
        if self.is_cancelled {
            return Ok(Some(Ending::Cancelled));
        }
        self.due = match self.voice.step(&self.behaviour)? {
            Next::Pause(pause) => Some(Instant::now() + pause),
            Next::Answer => None,
            Next::End => return self.end(),
        };
        Ok(None)
    }

    fn end(&mut self) -> anyhow::Result<Option<Ending>> {
        match self.behaviour.end {
            End::Hang => {
                self.due = None;
                return Ok(None);
            }
            // The crash takes the other turns of the process with it.
            End::Crash if self.voice.one_in_four() => drop(kill_process(getpid(), Signal::KILL)),
            End::Code(code) => {
                self.voice.record.write(&Line::Ended(code))?;
                return Ok(Some(Ending::Failed));
            }
            End::Well | End::Crash => {}
        }
        self.voice.record.write(&Line::Ended(0))?;
        Ok(Some(Ending::Well))
    }

    /// Records that the connection of its follower is cut.
    pub(super) fn note_cut(&mut self) -> io::Result<()> {
        self.voice.record.write(&Line::Cut)
    }

    /// Releases its locks, and returns the lines that end it: once they are written, the next turn may come.
    pub(super) fn over(mut self, ending: Ending) -> Vec<Value> {
        self.voice.ending(ending)
    }
}

/// Lets every turn that is due say one thing. Returns those that ended, and how.
pub(super) fn go_on(turns: &mut Vec<Turn>) -> anyhow::Result<Vec<(Turn, Ending)>> {
    let (now, mut over) = (Instant::now(), Vec::new());
    for (at, turn) in turns.iter_mut().enumerate() {
        over.extend(turn.step(now)?.map(|ending| (at, ending)));
    }
    // From the back, so that the other indexes stay valid.
    Ok(over.into_iter().rev().map(|(at, ending)| (turns.remove(at), ending)).collect())
}

/// When the next turn is due.
pub(super) fn next_due(turns: &[Turn]) -> Option<Instant> {
    turns.iter().filter_map(|turn| turn.due).min()
}

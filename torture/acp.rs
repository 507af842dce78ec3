//! An agent that speaks ACP: one process for many turns, of one session or of several, which run at the same time.
//!
//! Always: one thread, so that the process is dead when its locks are free; the client names the run of a turn in `_meta`. What
//! the agent repeats when it loads a session is in no record.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::sleep;

use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::agent::End;
use super::fake::acp::{self, Client, Prompt, Traits, text_of, to_stdout};
use super::protocol::Acp;
use super::record::MARK;
use super::turn::{self, CANCEL_DELAY, Purpose, Turn};
use super::voice;

/// Serves until its stdin is closed. Returns its exit status.
///
/// # Errors
/// If a turn does not name its run, or its record cannot be written.
pub(super) fn serve(records: &Path) -> anyhow::Result<u8> {
    let traits = Traits {
        words: vec!["load".to_owned()],
        store: None,
        log: None,
        // Marked as an agent's word: if one is taken for new output, the checks find it.
        read_back: format!("{MARK}read back "),
    };
    let mut turns = Turns { records: records.to_owned(), turns: Vec::new(), begun: 0 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(acp::serve(traits, &mut turns, Rc::new(to_stdout)))?;
    if turns.turns.iter().any(|turn| turn.behaviour.delays_cancel) {
        sleep(CANCEL_DELAY);
    }
    Ok(0)
}

/// Turns that follow their seeds.
struct Turns {
    records: PathBuf,
    turns: Vec<Turn>,
    begun: u32,
}

impl acp::Turns for Turns {
    fn begin(&mut self, _: &Client, prompt: Prompt, _: &mut Vec<String>) -> anyhow::Result<()> {
        let Prompt { id, session, params } = prompt;
        let seed = text_of(&params)?.trim().parse()?;
        let encoder = Acp::new(session.clone(), id);
        let purpose = Purpose::from_prompt(&params["_meta"]["mainstay"], session, seed)?;
        self.turns.push(Turn::begin(&self.records, purpose, self.begun, Box::new(encoder), voice::stdout())?);
        self.begun += 1;
        Ok(())
    }

    fn cancel(&mut self, session: &str) -> anyhow::Result<()> {
        let ignores_cancel = |turn: &Turn| turn.behaviour.end == End::Hang && turn.behaviour.ignores_sigterm;
        let mut of_session = self.turns.iter_mut().filter(|turn| turn.conversation == session && !ignores_cancel(turn));
        Ok(of_session.try_for_each(Turn::cancel)?)
    }

    fn answered(&mut self, answer: &Value) -> anyhow::Result<()> {
        for turn in &mut self.turns {
            turn.hear(answer)?;
        }
        Ok(())
    }

    fn reopened(&mut self, _: &str) {}

    /// Writes the end of a turn only after the turn's locks are released.
    async fn go_on(&mut self, client: &Client) -> anyhow::Result<()> {
        match turn::next_due(&self.turns) {
            Some(due) => sleep_until(Instant::from_std(due)).await,
            None => std::future::pending().await,
        }
        for (turn, ending) in turn::go_on(&mut self.turns)? {
            turn.over(ending).iter().try_for_each(|line| client.send(line))?;
        }
        Ok(())
    }
}

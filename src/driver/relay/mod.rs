//! A relay: a small process of this same program that takes one turn to a live agent (one that speaks ACP and is kept warm,
//! an HTTP server, a gateway) and writes what that says to its stdout, line by line. To the engine it is the agent of the
//! turn, like any other process: held by a shim, ended by SIGTERM, gone on with after a crash.
//!
//! Always: on SIGTERM it cancels the turn in the agent's own protocol, and ends when that has confirmed it. The first line
//! on its stdin is the turn; further ones are answers to what the agent asked. It ends with 0 when the turn came to its
//! end, whatever that was.

pub(super) mod pipes;

use std::ffi::OsString;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::agent::ProcessSpec;
use crate::message::Attachment;
use crate::options::SessionOptions;
use crate::policy::OptionRules;
use crate::process::{Prompt, Shims, StartError};

/// The argument that makes this program a relay; the driver's word is the next one.
pub const COMMAND: &str = "relay";

/// One turn, as a relay is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelayedTurn {
    /// Our own id of the conversation.
    pub session: String,
    /// The run.
    pub run: String,
    /// The try at it.
    pub attempt: i64,
    /// The slot's id, or the workspace's.
    pub slot: String,
    /// Where to work.
    pub dir: std::path::PathBuf,
    /// The agent's own id of the conversation, when it told us one.
    pub agent_session: Option<String>,
    /// What the person said.
    pub message: String,
    /// The files of the message.
    pub attachments: Vec<Attachment>,
    /// The options of the session. Its `cwd` is `dir` then, without links in it.
    pub options: SessionOptions,
    /// What they may be.
    #[serde(default)]
    pub rules: OptionRules,
    /// Whether the agent may forget the conversation after the turn.
    pub oneshot: bool,
    /// Where the live agent is reached.
    pub endpoint: String,
}

impl RelayedTurn {
    /// The turn of a prompt, on a live agent at `endpoint`.
    pub fn new(prompt: &Prompt, endpoint: String) -> Self {
        Self {
            session: prompt.place.session.to_string(),
            run: prompt.place.attempt.run.to_string(),
            attempt: prompt.place.attempt.number,
            slot: prompt.place.slot.clone(),
            dir: prompt.place.dir.clone(),
            agent_session: prompt.place.agent_session.clone(),
            message: prompt.message.clone(),
            attachments: prompt.attachments.clone(),
            options: prompt.options.clone(),
            rules: prompt.rules.clone(),
            oneshot: prompt.oneshot,
            endpoint,
        }
    }

    /// What the agent is told of it beside the prompt, for its logs: it means nothing to the model.
    pub(super) fn marker(&self) -> Map<String, Value> {
        let Self { run, attempt, session, slot, .. } = self;
        let marker = json!({"run": run, "attempt": attempt, "session": session, "slot": slot});
        Map::from_iter([("mainstay".to_owned(), marker)])
    }

    /// The line that says it.
    pub fn to_line(&self) -> String {
        // Texts and maps of texts: none of them can fail to serialise.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

/// The driver whose turn is to be relayed, when this program was started as a relay.
pub fn asked_for(mut arguments: impl Iterator<Item = OsString>) -> Option<String> {
    let is_relay = arguments.nth(1).is_some_and(|word| word == COMMAND);
    let driver = arguments.next().filter(|_| is_relay)?.into_string().ok()?;
    arguments.next().is_none().then_some(driver)
}

/// How a relay is started for a turn.
///
/// # Errors
/// When the program's path is no text.
pub(super) fn process(shims: &Shims, driver: &str, max_line_bytes: usize) -> Result<ProcessSpec, StartError> {
    let program = shims.program().to_str().ok_or_else(|| StartError::from("the path of mainstay is no text"))?;
    let command = [program, COMMAND, driver].map(str::to_owned).to_vec();
    Ok(ProcessSpec { command, env: std::collections::BTreeMap::new(), max_line_bytes })
}

//! A relay: a small process of this same program that takes one turn to a backend (an ACP agent, an HTTP server, a
//! gateway) and writes the backend's events to its stdout, line by line. To the engine it is the agent of the turn,
//! like any other process: held by a shim, ended by SIGTERM, adopted after a crash.
//!
//! Always: on SIGTERM it cancels the turn in the agent's own protocol, and exits when the agent has confirmed that. The
//! first line on its stdin is the turn; further lines answer the agent's requests. It exits with 0 if the turn ended,
//! however it ended.

pub(super) mod pipes;

use std::ffi::OsString;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::agent::ProcessSpec;
use crate::message::Attachment;
use crate::options::SessionOptions;
use crate::policy::OptionRules;
use crate::process::{Prompt, Shims, StartError};

/// The argument that makes this program a relay; the driver's name is the next one.
pub const COMMAND: &str = "relay";

/// One turn, as it is passed to a relay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelayedTurn {
    /// Mainstay's own id of the conversation.
    pub session: String,
    /// The run.
    pub run: String,
    /// The number of the attempt.
    pub attempt: i64,
    /// The slot's id, or the workspace's.
    pub slot: String,
    /// The working directory.
    pub dir: std::path::PathBuf,
    /// The agent's own id of the conversation, if it reported one.
    pub agent_session: Option<String>,
    /// The user's message.
    pub message: String,
    /// The files of the message.
    pub attachments: Vec<Attachment>,
    /// The options of the session. If `cwd` is set, it equals `dir`, with links resolved.
    pub options: SessionOptions,
    /// Limits on the options.
    #[serde(default)]
    pub rules: OptionRules,
    /// Whether the agent may forget the conversation after the turn.
    pub oneshot: bool,
    /// Where the backend is reached.
    pub endpoint: String,
}

impl RelayedTurn {
    /// The turn of a prompt, on a backend at `endpoint`.
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

    /// Metadata for the agent's logs, sent beside the prompt; the model does not see it.
    pub(super) fn marker(&self) -> Map<String, Value> {
        let Self { run, attempt, session, slot, .. } = self;
        let marker = json!({"run": run, "attempt": attempt, "session": session, "slot": slot});
        Map::from_iter([("mainstay".to_owned(), marker)])
    }

    /// Encodes it as a line.
    pub fn to_line(&self) -> String {
        // Strings and maps of strings: they always serialise.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

/// The driver whose turn is to be relayed, if this program was started as a relay.
pub fn asked_for(mut arguments: impl Iterator<Item = OsString>) -> Option<String> {
    let is_relay = arguments.nth(1).is_some_and(|word| word == COMMAND);
    let driver = arguments.next().filter(|_| is_relay)?.into_string().ok()?;
    arguments.next().is_none().then_some(driver)
}

/// The command that starts a relay for a turn.
///
/// # Errors
/// The path of the program is not UTF-8.
pub(super) fn process(shims: &Shims, driver: &str, max_line_bytes: usize) -> Result<ProcessSpec, StartError> {
    let program = shims.program().to_str().ok_or_else(|| StartError::from("the path of mainstay is no text"))?;
    let command = [program, COMMAND, driver].map(str::to_owned).to_vec();
    Ok(ProcessSpec { command, env: std::collections::BTreeMap::new(), max_line_bytes })
}

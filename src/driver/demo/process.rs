//! The demo agent as a process of this same program, under a shim like any other agent: it keeps running while the
//! engine is killed and replaced.
//!
//! Always: the first line on its stdin is the turn, further lines answer its requests, and each line that it writes is
//! one event. SIGTERM ends it by default: it has nothing to clean up.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{answer_line, speak};
use crate::agent::ProcessSpec;
use crate::agent_event::{AgentEvent, LineParser};
use crate::driver::per_turn::{Dialect, Stdin};
use crate::driver::relay::pipes::{Input, Output};
use crate::message::Attachment;
use crate::permission::PermissionRequest;
use crate::process::End;
use crate::run::Cause;

/// The argument that makes this program the demo agent.
const COMMAND: &str = "demo-agent";

/// Exit code if its output has no reader any more.
const UNREAD: u8 = 1;

/// The first line on its stdin.
#[derive(Debug, Serialize, Deserialize)]
struct Turn {
    message: String,
    attachments: Vec<Attachment>,
}

/// A line of its output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Reasoning(String),
    Text(String),
    ToolStarted { id: String, name: String, input: Value },
    ToolProgress { id: String, output: Value },
    ToolFinished { id: String, name: Option<String>, result: Result<Value, String> },
    Permission(PermissionRequest),
    Error(String),
    Ended,
}

impl Said {
    /// `None` for events that the demo agent does not use.
    fn of(event: AgentEvent) -> Option<Self> {
        Some(match event {
            AgentEvent::Reasoning(text) => Self::Reasoning(text),
            AgentEvent::Text(text) => Self::Text(text),
            AgentEvent::ToolStarted { id, name, input, .. } => Self::ToolStarted { id, name, input },
            AgentEvent::ToolProgress { id, output } => Self::ToolProgress { id, output },
            AgentEvent::ToolFinished { id, name, result } => Self::ToolFinished { id, name, result },
            AgentEvent::Permission(request) => Self::Permission(request),
            AgentEvent::Error(error) => Self::Error(error.message),
            AgentEvent::Ended => Self::Ended,
            _ => return None,
        })
    }

    fn into_event(self) -> AgentEvent {
        match self {
            Self::Reasoning(text) => AgentEvent::Reasoning(text),
            Self::Text(text) => AgentEvent::Text(text),
            Self::ToolStarted { id, name, input } => {
                AgentEvent::ToolStarted { id, name, title: None, input, parent: None }
            }
            Self::ToolProgress { id, output } => AgentEvent::ToolProgress { id, output },
            Self::ToolFinished { id, name, result } => AgentEvent::ToolFinished { id, name, result },
            Self::Permission(request) => AgentEvent::Permission(request),
            Self::Error(text) => AgentEvent::Error(text.into()),
            Self::Ended => AgentEvent::Ended,
        }
    }
}

/// How it is started: as `program`, which is this one.
pub(super) fn spec(program: &str) -> ProcessSpec {
    ProcessSpec::of(&[program, COMMAND])
}

/// How the driver talks to it.
pub(super) fn dialect() -> Dialect {
    Dialect {
        stdin: |prompt| {
            let turn = Turn { message: prompt.message.clone(), attachments: prompt.attachments.clone() };
            // Strings only: they always serialise.
            Stdin::Open(serde_json::to_string(&turn).unwrap_or_default() + "\n")
        },
        answer: |request, decision| Some(answer_line(request, decision)),
        ..Dialect::of_lines(parser)
    }
}

fn parser() -> LineParser {
    Box::new(|line| Some(vec![serde_json::from_str::<Said>(line).ok()?.into_event()]))
}

/// Whether this program was started as the demo agent.
pub fn is_asked_for(mut arguments: impl Iterator<Item = OsString>) -> bool {
    arguments.nth(1).is_some_and(|word| word == COMMAND) && arguments.next().is_none()
}

/// Runs as the demo agent until its turn is over.
///
/// # Errors
/// No turn arrives on stdin, or the output cannot be written.
pub fn run() -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut input, output) = (Input::of_stdin()?, Output::of_stdout()?);
        let turn: Turn = input.turn().await?;
        take(turn, input, output).await
    })
}

async fn take(turn: Turn, mut input: Input, mut output: Output) -> io::Result<ExitCode> {
    let mut reply = speak(turn.message, turn.attachments);
    reply.control.begin();
    let mut is_saying = true;
    while is_saying || !output.is_all_written() {
        tokio::select! {
            record = reply.records.recv(), if is_saying && output.has_room() => match record {
                Some(record) => record.events.into_iter().filter_map(Said::of).try_for_each(|said| {
                    serde_json::to_string(&said).map(|line| output.say(&line))
                })?,
                None => is_saying = false,
            },
            line = input.next(), if is_saying && input.is_open() => if let Some(line) = line {
                reply.control.write(&line).await;
            },
            written = output.write(), if !output.is_all_written() => if written.is_err() {
                reply.control.kill(Cause::Cancelled);
                return Ok(ExitCode::from(UNREAD));
            },
        }
    }
    let code = match reply.end.await.map_err(io::Error::other)? {
        End::Exited(exit) => exit.code.and_then(|code| u8::try_from(code).ok()),
        _ => None,
    };
    Ok(ExitCode::from(code.unwrap_or(UNREAD)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_event_of_the_demo_agent_is_a_line() {
        for message in ["hello", "/tool", "/slow 3", "/fail", "/exit 3", "/dance"] {
            let mut reply = speak(message.to_owned(), Vec::new());
            reply.control.begin();
            let mut parse = parser();
            while let Some(record) = reply.records.recv().await {
                for event in record.events {
                    let said = Said::of(event.clone()).unwrap_or_else(|| panic!("{event:?} is no line"));
                    let line = serde_json::to_string(&said).unwrap_or_default();
                    assert_eq!(parse(&line), Some(vec![event]), "{line}");
                }
            }
        }
    }
}

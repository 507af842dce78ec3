//! Claude Code: one process per turn that speaks JSON lines in both directions. Its stdin stays open for the whole
//! turn, because it is used to answer permission requests and to interrupt the turn.
//!
//! Its conversations are files, separate for each working directory; `--resume` continues one.

mod input;
mod lines;
mod message;
mod notices;
mod requests;
mod result;
mod tasks;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::time::Duration;

use super::per_turn::{Dialect, PerTurn, Stdin, Stdout};
use crate::agent::{CLAUDE_OPTIONS, ProcessSpec};
use crate::process::Prompt;
use crate::process::Shims;

pub use lines::parser;

/// Makes it speak JSON lines, stream text, and ask for permissions on its stdout. Its tool to ask questions would get
/// no answer; without that tool it asks in its message.
const ALWAYS: [&str; 7] = [
    "-p",
    "--output-format=stream-json",
    "--input-format=stream-json",
    "--verbose",
    "--include-partial-messages",
    "--permission-prompt-tool=stdio",
    "--disallowedTools=AskUserQuestion",
];

/// Makes it report whether it works: its turn is over when it is idle, whatever task events were missed.
const STATES: (&str, &str) = ("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1");

/// The driver of an agent.
pub fn backend(spec: &ProcessSpec, kill_grace: Duration, shims: &Shims) -> PerTurn {
    let dialect = Dialect {
        arguments,
        stdin: |prompt| Stdin::Open(input::message(prompt)),
        stdout: Stdout::Lines(parser),
        interrupt: Some(input::interrupt),
        answer: |request, decision| Some(input::answer(request, decision)),
        is_session_gone: result::is_session_gone,
        environment: &[STATES],
        says_end: true,
    };
    PerTurn::new(spec.clone(), kill_grace, dialect, shims.clone())
}

fn arguments(prompt: &Prompt) -> Vec<OsString> {
    let options = &prompt.options;
    let mut arguments: Vec<OsString> = ALWAYS.map(OsString::from).into();
    // One argument each, so that no value is taken for a flag.
    let mut add = |flag: &str, value: Option<&String>| {
        arguments.extend(value.map(|value| format!("--{flag}={value}").into()));
    };
    add("model", options.model.as_ref());
    add("permission-mode", options.permission_profile.as_ref().or(options.mode.as_ref()));
    for flag in CLAUDE_OPTIONS.iter().filter_map(|option| option.strip_prefix("extra.")) {
        add(flag, options.extra.get(flag));
    }
    if prompt.oneshot {
        arguments.push("--no-session-persistence".into());
    } else {
        add("resume", prompt.place.agent_session.as_ref());
    }
    arguments
}

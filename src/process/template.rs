//! Placeholders in a command and its environment: `{message}` `{session}` `{run}` `{slot}` `{workspace}`
//! `{agent_session}` `{dir}`.
//!
//! Always: a template is filled in one pass, so a `{…}` inside a message is never taken for a placeholder; a value
//! stays within its argument, because nothing splits or quotes it afterwards.

use std::ffi::OsString;

use super::TurnPlace;
use crate::config::placeholder;

/// Fills the placeholders of one argument or value. An unknown `{…}` stays: JSON and shell text have braces too.
pub(crate) fn fill(template: &str, place: &TurnPlace, message: &str) -> OsString {
    let mut filled = OsString::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, name, behind)) = placeholder::next(rest) {
        filled.push(before);
        match meaning(name) {
            Some(value) => filled.push(value(place, message)),
            None => filled.push(format!("{{{name}}}")),
        }
        rest = behind;
    }
    filled.push(rest);
    filled
}

/// Whether a template uses `{message}`.
pub(crate) fn asks_for_message(template: &str) -> bool {
    template.contains("{message}")
}

/// How to compute a placeholder's value from a turn and its message; none if unknown.
fn meaning(name: &str) -> Option<fn(&TurnPlace, &str) -> OsString> {
    Some(match name {
        "message" => |_, message| message.into(),
        "session" => |place, _| place.session.as_str().into(),
        "slot" => |place, _| place.slot.as_str().into(),
        "workspace" => |place, _| place.workspace.as_str().into(),
        "agent_session" => |place, _| place.agent_session.as_deref().unwrap_or_default().into(),
        "run" => |place, _| place.attempt.run.to_string().into(),
        "dir" => |place, _| place.dir.as_os_str().into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::fixtures::prompt;

    #[test]
    fn fills_each_placeholder_once_and_leaves_other_braces() {
        let prompt = prompt("look at {run} {session} $(id) \"'\n");
        let run = prompt.place.attempt.run.to_string();
        for (template, filled) in [
            ("", ""),
            ("plain", "plain"),
            ("{session}", "s-1"),
            ("agent:{slot}:web:{session}", "agent:chat-slot-w-1:web:s-1"),
            ("{workspace}{dir}", "w/srv/w"),
            ("{agent_session}", ""),
            ("{run}", run.as_str()),
            ("{message}", prompt.message.as_str()),
            ("{nobody} {Session} {} { session }", "{nobody} {Session} {} { session }"),
            ("{\"s\":\"{session}\"}", "{\"s\":\"s-1\"}"),
            ("{{session}}", "{s-1}"),
            ("{nobody{session}", "{nobodys-1"),
            ("open {session", "open {session"),
            ("{", "{"),
        ] {
            assert_eq!(fill(template, &prompt.place, &prompt.message), OsString::from(filled), "{template}");
        }
    }

    #[test]
    fn each_placeholder_stands_for_something() {
        for name in placeholder::NAMES {
            assert!(meaning(name).is_some(), "{name}");
        }
    }
}

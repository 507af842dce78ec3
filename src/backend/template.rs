//! Placeholders in a command and its environment: `{message}` `{session}` `{run}` `{slot}` `{workspace}`
//! `{agent_session}` `{dir}`.
//!
//! Always: a text is filled in one pass, so that what stands in a message is never taken for a placeholder; what a
//! placeholder stands for stays within its argument, because nothing splits or quotes it afterwards.

use std::ffi::OsString;

use super::TurnPlace;

/// Fills the placeholders of one argument or value. An unknown `{…}` stays as it is: JSON and shell text have braces too.
pub(super) fn fill(template: &str, place: &TurnPlace, message: &str) -> OsString {
    let mut filled = OsString::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, name, behind)) = next_placeholder(rest) {
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

/// What looks like a placeholder in a template and is none, unless a shell is to replace it.
pub(crate) fn unknown(template: &str) -> impl Iterator<Item = &str> {
    let mut rest = template;
    let names = std::iter::from_fn(move || {
        let (before, name, behind) = next_placeholder(rest)?;
        rest = behind;
        Some((before, name))
    });
    let names = names.filter(|(before, name)| !name.is_empty() && !before.ends_with('$') && meaning(name).is_none());
    names.map(|(_, name)| name)
}

/// Whether a template asks for the message.
pub(super) fn asks_for_message(template: &str) -> bool {
    template.contains("{message}")
}

/// The text before the first `{name}`, the name, and the text behind it.
fn next_placeholder(text: &str) -> Option<(&str, &str, &str)> {
    text.match_indices('{').find_map(|(open, _)| {
        let inside = &text[open + 1..];
        let length = inside.find(|c: char| !c.is_ascii_lowercase() && c != '_')?;
        let behind = inside[length..].strip_prefix('}')?;
        Some((&text[..open], &inside[..length], behind))
    })
}

/// What a placeholder stands for, in a turn and its message.
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
    use crate::backend::fixtures::prompt;

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
    fn a_mistyped_placeholder_is_found_among_other_braces() {
        let names = |template| unknown(template).collect::<Vec<_>>();
        assert_eq!(names("--id={sesion} {session}{message_id}"), ["sesion", "message_id"]);
        assert!(names("{\"s\":\"{session}\",\"t\":{}} ${home} {Home} {{dir}} {a b").is_empty());
    }
}

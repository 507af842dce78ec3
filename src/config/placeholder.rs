//! Placeholders in commands, environments and names of agents: `{message}`, `{session}`, …
//!
//! Always: braces around anything but a lower-case word are not a placeholder, nor is a shell variable (`${home}`): JSON, awk
//! and shell text have braces, too.

use crate::nearest::nearest_by_slips;

/// All placeholders.
pub(crate) const NAMES: [&str; 7] = ["message", "session", "run", "slot", "workspace", "agent_session", "dir"];

/// Minimum length of a misspelt placeholder: a shorter word is close to too many others.
const MIN_MISTYPED_CHARS: usize = 4;

/// The text before the first `{name}`, the name, and the text after it.
pub(crate) fn next(text: &str) -> Option<(&str, &str, &str)> {
    text.match_indices('{').find_map(|(open, _)| {
        let inside = &text[open + 1..];
        let length = inside.find(|c: char| !c.is_ascii_lowercase() && c != '_')?;
        let behind = inside[length..].strip_prefix('}')?;
        Some((&text[..open], &inside[..length], behind))
    })
}

/// The words in a template that look like a placeholder and are none.
pub(crate) fn unknown(template: &str) -> impl Iterator<Item = &str> {
    let mut rest = template;
    let names = std::iter::from_fn(move || {
        let (before, name, behind) = next(rest)?;
        rest = behind;
        Some((before, name))
    });
    let names = names.filter(|(before, name)| !name.is_empty() && !before.ends_with('$') && !NAMES.contains(name));
    names.map(|(_, name)| name)
}

/// The first word in braces that is probably a misspelt placeholder, and the placeholder that was probably meant.
pub(super) fn mistyped(template: &str) -> Option<(&str, &'static str)> {
    let long = unknown(template).filter(|name| name.len() >= MIN_MISTYPED_CHARS);
    long.filter_map(|name| Some((name, nearest_by_slips(name, &NAMES)?))).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_near_a_placeholder_is_mistyped() {
        for (template, expected) in [
            ("{mesage}", Some(("mesage", "message"))),
            ("--id={sesion} {session}", Some(("sesion", "session"))),
            ("agent:{slots}", Some(("slots", "slot"))),
            ("{agentsession}", Some(("agentsession", "agent_session"))),
            ("{work_space}", Some(("work_space", "workspace"))),
            ("{message}{dir}", None),
            ("{\"mesage\":1} {} ${mesage} {Mesage} { mesage }", None),
            ("{print} {next} {exit} {id} {name} {model} {message_id} {rub}", None),
        ] {
            assert_eq!(mistyped(template), expected, "{template}");
        }
    }

    #[test]
    fn a_mistyped_placeholder_is_found_among_other_braces() {
        let names = |template| unknown(template).collect::<Vec<_>>();
        assert_eq!(names("--id={sesion} {session}{message_id}"), ["sesion", "message_id"]);
        assert!(names("{\"s\":\"{session}\",\"t\":{}} ${home} {Home} {{dir}} {a b").is_empty());
    }
}

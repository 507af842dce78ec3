//! Sanitizes what an agent says about itself: titles, tool names, statuses, errors. Its message and the input and
//! output of tools stay unchanged.

use crate::agent_event::AgentEvent;
use crate::permission::PermissionRequest;
use crate::text::{MAX_TITLE_CHARS, MAX_TOOL_CHARS, heard_line, heard_text};

/// The name of a tool whose own name has no visible character.
const NAMELESS: &str = "tool";

/// The event with sanitized texts; none if nothing is left of it.
pub(super) fn clean(event: AgentEvent) -> Option<AgentEvent> {
    Some(match event {
        AgentEvent::Title(title) => AgentEvent::Title(heard_line(&title, MAX_TITLE_CHARS)?),
        AgentEvent::Status(status) => AgentEvent::Status(text(status)),
        AgentEvent::ToolStarted { id, name, title, input, parent } => {
            AgentEvent::ToolStarted { id, name: tool(&name), title: title.map(text), input, parent }
        }
        AgentEvent::ToolFinished { id, name, result } => {
            AgentEvent::ToolFinished { id, name: name.map(|name| tool(&name)), result }
        }
        AgentEvent::Source { url, title } => AgentEvent::Source { url, title: title.map(text) },
        AgentEvent::Permission(request) => AgentEvent::Permission(question(request)),
        AgentEvent::Notice(mut notice) => {
            notice.text = text(notice.text);
            AgentEvent::Notice(notice)
        }
        AgentEvent::Error(mut error) => {
            error.message = text(error.message);
            AgentEvent::Error(error)
        }
        AgentEvent::Trouble(mut error) => {
            error.message = text(error.message);
            AgentEvent::Trouble(error)
        }
        event => event,
    })
}

fn text(text: String) -> String {
    match heard_text(&text) {
        std::borrow::Cow::Borrowed(_) => text,
        std::borrow::Cow::Owned(text) => text,
    }
}

fn tool(name: &str) -> String {
    heard_line(name, MAX_TOOL_CHARS).unwrap_or_else(|| NAMELESS.to_owned())
}

/// The ids of the options are sent back to the agent, so they stay unchanged.
fn question(mut request: PermissionRequest) -> PermissionRequest {
    request.tool = tool(&request.tool);
    request.title = text(request.title);
    for option in &mut request.options {
        option.name = text(std::mem::take(&mut option.name));
    }
    request
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_titles_are_cleaned_and_content_is_not() {
        let started = |name: &str, input: &str| AgentEvent::ToolStarted {
            id: "i\0".into(),
            name: name.into(),
            title: Some("a\u{202e}\nb".into()),
            input: json!(input),
            parent: None,
        };
        let AgentEvent::ToolStarted { id, name, title, input, .. } = clean(started("rm\u{1b}[2J\n", "\u{1b}")).unwrap()
        else {
            panic!("another event")
        };
        assert_eq!((id.as_str(), name.as_str(), title.as_deref()), ("i\0", "rm [2J", Some("a\u{fffd}\nb")));
        assert_eq!(input, json!("\u{1b}"));
        let AgentEvent::ToolStarted { name, .. } = clean(started("\u{9b}", "")).unwrap() else {
            panic!("another event")
        };
        assert_eq!(name, "tool");
        assert_eq!(clean(AgentEvent::Title("\u{1b} \n".into())), None);
        assert_eq!(clean(AgentEvent::Title(" a\0b ".into())), Some(AgentEvent::Title("a b".into())));
        assert_eq!(clean(AgentEvent::Text("\u{1b}".into())), Some(AgentEvent::Text("\u{1b}".into())));
        assert_eq!(clean(AgentEvent::Error("a\0b".into())), Some(AgentEvent::Error("a\u{fffd}b".into())));
    }
}

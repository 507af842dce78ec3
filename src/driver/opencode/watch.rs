//! Determines which events belong to a turn, and when it is over. Pure: events in, answers out.
//!
//! Always: a turn is over only after the server was busy with it, or refused it. A server reports more than once that
//! it is idle, and after an abort it still reports how the message ended: as long as a message is open, more follows.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

/// The state of a turn.
#[derive(Debug, Default)]
pub(super) struct Watch {
    root: String,
    /// The session and those of its sub-agents.
    family: HashSet<String>,
    /// The last message before the turn. Ids are ascending.
    before: Option<String>,
    has_prompt: bool,
    was_busy: bool,
    is_idle: bool,
    was_refused: bool,
    /// Incomplete messages of the agent.
    open: HashSet<String>,
    /// Permission requests without an answer.
    asked: BTreeSet<String>,
}

impl Watch {
    /// A turn of the session `root` that begins after the message `before`.
    pub(super) fn new(root: &str, before: Option<String>) -> Self {
        Self { root: root.to_owned(), family: HashSet::from([root.to_owned()]), before, ..Self::default() }
    }

    /// Updates the state from an event; returns whether the event belongs to the turn.
    pub(super) fn see(&mut self, event: &Value) -> bool {
        let (Some(kind), Some(properties)) = (text(event, "/type"), event.get("properties")) else { return false };
        let child = (kind == "session.created").then(|| properties.get("info")).flatten();
        if let Some(child) = child
            && let (Some(id), Some(parent)) = (text(child, "/id"), text(child, "/parentID"))
            && self.family.contains(parent)
        {
            self.family.insert(id.to_owned());
        }
        let session = text(properties, "/sessionID").or_else(|| text(properties, "/part/sessionID"));
        let Some(session) = session.filter(|session| self.family.contains(*session)) else { return false };
        match kind {
            "permission.asked" => self.asked.extend(text(properties, "/id").map(str::to_owned)),
            "permission.replied" => {
                self.asked.remove(text(properties, "/requestID").unwrap_or_default());
            }
            _ => {}
        }
        if session != self.root {
            return true;
        }
        match kind {
            "message.updated" => return self.see_message(properties),
            "message.part.updated" => return self.is_of_turn(text(properties, "/part/messageID")),
            "session.status" => {
                let is_idle = text(properties, "/status/type") == Some("idle");
                self.was_busy |= self.has_prompt && !is_idle;
                self.is_idle = is_idle;
            }
            "session.idle" => self.is_idle = true,
            "session.error" => self.was_refused = true,
            _ => {}
        }
        true
    }

    /// Whether an unreadable event may belong to the turn: it names a session of the turn, or none.
    pub(super) fn may_be_of_turn(&self, unreadable: &str) -> bool {
        let is_named = |session: &String| unreadable.contains(&format!("\"{session}\""));
        self.family.iter().any(is_named) || !unreadable.contains("\"sessionID\"")
    }

    fn see_message(&mut self, properties: &Value) -> bool {
        let id = text(properties, "/info/id");
        if !self.is_of_turn(id) {
            return false;
        }
        // A server that answers is busy, even if the event that says so was missed.
        self.was_busy |= text(properties, "/info/role") == Some("assistant");
        match (text(properties, "/info/role"), id) {
            (Some("user"), _) => self.has_prompt = true,
            (Some("assistant"), Some(id)) if properties.pointer("/info/time/completed").is_none() => {
                self.open.insert(id.to_owned());
            }
            (Some("assistant"), Some(id)) => {
                self.open.remove(id);
            }
            _ => {}
        }
        true
    }

    fn is_of_turn(&self, message: Option<&str>) -> bool {
        message.is_some_and(|message| self.before.as_deref().is_none_or(|before| message > before))
    }

    /// Whether to ask the server if it is idle: everything that was begun is complete.
    pub(super) fn may_be_over(&self) -> bool {
        self.open.is_empty() && (self.was_refused || self.is_idling())
    }

    /// Whether the server reports to be idle after it was busy with the turn.
    pub(super) fn is_idling(&self) -> bool {
        self.is_idle && self.was_busy
    }

    /// Records that the server, when asked, is busy.
    pub(super) fn goes_on(&mut self) {
        (self.is_idle, self.was_refused, self.was_busy) = (false, false, true);
    }

    /// Permission requests without an answer.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = &str> {
        self.asked.iter().map(String::as_str)
    }

    /// Whether a request belongs to the turn and is new; requests of aborted turns stay listed.
    pub(super) fn is_news(&self, request: &Value) -> bool {
        let is_listed = text(request, "/id").is_some_and(|id| self.asked.contains(id));
        let message = text(request, "/tool/messageID");
        !is_listed && message.is_none_or(|message| self.is_of_turn(Some(message)))
    }
}

/// The string at a JSON pointer.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(id: &str, role: &str, completed: bool) -> Value {
        let time = if completed { json!({"created": 1, "completed": 2}) } else { json!({"created": 1}) };
        json!({"type": "message.updated",
               "properties": {"sessionID": "ses_1", "info": {"id": id, "role": role, "time": time}}})
    }

    fn status(word: &str) -> Value {
        json!({"type": "session.status", "properties": {"sessionID": "ses_1", "status": {"type": word}}})
    }

    fn simple(kind: &str) -> Value {
        json!({"type": kind, "properties": {"sessionID": "ses_1"}})
    }

    #[test]
    fn idle_counts_only_after_the_server_was_busy_with_the_turn() {
        let mut watch = Watch::new("ses_1", Some("msg_1".to_owned()));
        for event in [status("busy"), status("idle"), simple("session.idle"), message("msg_2", "user", false)] {
            watch.see(&event);
            assert!(!watch.may_be_over(), "{event}");
        }
        // The second idle event of an earlier abort.
        watch.see(&simple("session.idle"));
        assert!(!watch.may_be_over());
        watch.see(&status("busy"));
        watch.see(&message("msg_3", "assistant", false));
        watch.see(&message("msg_3", "assistant", true));
        assert!(!watch.may_be_over());
        watch.see(&status("idle"));
        assert!(watch.may_be_over());
    }

    #[test]
    fn after_an_abort_it_waits_for_the_end_of_the_message() {
        let mut watch = Watch::new("ses_1", None);
        for event in [message("msg_2", "user", false), status("busy"), message("msg_3", "assistant", false)] {
            watch.see(&event);
        }
        for event in [simple("session.error"), status("idle"), simple("session.idle")] {
            watch.see(&event);
            assert!(!watch.may_be_over(), "{event}");
        }
        assert!(watch.is_idling());
        watch.see(&message("msg_3", "assistant", true));
        assert!(watch.may_be_over());
    }

    #[test]
    fn a_turn_that_began_and_ended_unheard_is_over_once_it_is_told() {
        let mut watch = Watch::new("ses_1", None);
        for event in [message("msg_2", "user", false), message("msg_3", "assistant", true)] {
            watch.see(&event);
            assert!(!watch.may_be_over(), "{event}");
        }
        watch.see(&status("idle"));
        assert!(watch.may_be_over());
    }

    #[test]
    fn a_prompt_that_is_refused_before_it_began_is_over() {
        let mut watch = Watch::new("ses_1", None);
        watch.see(&simple("session.error"));
        assert!(watch.may_be_over());
    }

    #[test]
    fn only_the_session_and_its_sub_agents_count() {
        let mut watch = Watch::new("ses_1", Some("msg_5".to_owned()));
        let of = |session: &str| json!({"type": "message.part.delta", "properties": {"sessionID": session}});
        assert!(watch.see(&of("ses_1")));
        assert!(!watch.see(&of("ses_2")));
        let created = json!({"type": "session.created",
            "properties": {"sessionID": "ses_2", "info": {"id": "ses_2", "parentID": "ses_1"}}});
        assert!(watch.see(&created) && watch.see(&of("ses_2")));
        assert!(!watch.see(&message("msg_4", "assistant", false)), "an earlier message");
        assert!(!watch.see(&json!({"type": "server.heartbeat", "properties": {}})));
        assert!(!watch.see(&json!([1])));
        for (cut, is_ours) in
            [(r#"{"sessionID":"ses_2","#, true), (r#"{"sessionID":"ses_3","#, false), ("no JSON", true)]
        {
            assert_eq!(watch.may_be_of_turn(cut), is_ours, "{cut}");
        }
    }
}

//! The agent's own conversation in a turn, and whether it is the one to resume.
//!
//! Always: a conversation is given up only when the agent proves that it is gone. An id that an agent announces is stored if
//! it is the requested one, or once the agent has said something in it: a conversation that fails right after its start must
//! not replace a good one. Lost memory is reported with the first words that were said without it.

use crate::agent_event::{AgentEvent, SessionOrigin};
use crate::chunk::Notice;
use crate::failure::AgentError;
use crate::store::fact::Fact;
use crate::text::{AgentSessionId, InvalidAgentSessionId};

/// What people are told when an agent does not resume its conversation.
const MEMORY_LOST: &str =
    "The agent could not go on in its earlier conversation: it does not remember what was said before this message.";

/// The conversation of a turn.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// The conversation to resume.
    wanted: Option<AgentSessionId>,
    /// The agent is in that one, or people know that it is not.
    is_known: bool,
    /// An earlier attempt of the run found that the conversation before is gone.
    was_given_up: bool,
    announced: Option<(AgentSessionId, SessionOrigin)>,
    /// The agent gave an id that cannot be used, and people know that.
    is_refused: bool,
    has_spoken: bool,
    is_gone: bool,
    /// Why it could not resume, if the agent reports that before it says anything else.
    start_error: Option<AgentError>,
}

/// What an event adds: a fact to store, and a notice for people.
pub(super) type News = (Option<Fact>, Option<Notice>);

impl Conversation {
    /// The conversation of a turn that is to resume `wanted`.
    pub fn new(wanted: Option<AgentSessionId>, was_given_up: bool) -> Self {
        Self { wanted, was_given_up, ..Self::default() }
    }

    /// Takes the next event of the agent.
    pub fn hear(&mut self, event: &AgentEvent) -> News {
        match event {
            // An event without an id says nothing.
            AgentEvent::Session { id, .. } if id.is_empty() => (None, None),
            AgentEvent::Session { id, origin } => match id.parse() {
                Ok(id) => self.announce(id, *origin),
                Err(invalid) => (None, self.refuse(&invalid)),
            },
            AgentEvent::SessionGone => {
                self.is_gone = true;
                (None, None)
            }
            event if speaks(event) && !self.has_spoken => {
                self.has_spoken = true;
                self.news()
            }
            _ => (None, None),
        }
    }

    fn announce(&mut self, id: AgentSessionId, origin: SessionOrigin) -> News {
        if self.wanted.as_ref() == Some(&id) {
            self.is_known = true;
            return (Some(Fact::AgentSession { id, origin: origin.as_str() }), None);
        }
        self.announced = Some((id, origin));
        if self.has_spoken { self.news() } else { (None, None) }
    }

    /// The turn continues without the id.
    fn refuse(&mut self, invalid: &InvalidAgentSessionId) -> Option<Notice> {
        if std::mem::replace(&mut self.is_refused, true) {
            return None;
        }
        tracing::warn!(%invalid, "the agent's id of the conversation cannot be used");
        Some(Notice::warning(format!(
            "The agent's own id of this conversation cannot be used: {invalid}. The next message begins without memory of this one."
        )))
    }

    /// Keeps an error until the attempt ends, if it may only mean that the agent could not resume: a retry may succeed.
    pub fn keeps(&mut self, error: &AgentError) -> bool {
        let is_starting = self.wanted.is_some() && !self.is_known && self.announced.is_none() && !self.has_spoken;
        let keeps = is_starting && error.class.is_none();
        if keeps {
            self.start_error.get_or_insert_with(|| error.clone());
        }
        keeps
    }

    /// The error that was kept.
    pub fn take_start_error(&mut self) -> Option<AgentError> {
        self.start_error.take()
    }

    /// Whether it failed before it was in any conversation.
    pub fn has_failed_to_start(&self) -> bool {
        self.start_error.is_some()
    }

    /// The conversation to resume, unless the agent is in one already.
    pub fn not_resumed(&self) -> Option<&str> {
        let is_open = !self.is_known && self.announced.is_none();
        self.wanted.as_ref().map(AgentSessionId::as_str).filter(|_| is_open)
    }

    /// Whether the agent said that the conversation is gone.
    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// The id that was announced and is not stored yet.
    pub fn announced(&self) -> Option<&str> {
        self.announced.as_ref().map(|(id, _)| id.as_str())
    }

    fn news(&mut self) -> News {
        let announced = self.announced.take();
        let is_lost = !self.is_known && (self.was_given_up || (self.wanted.is_some() && announced.is_some()));
        self.is_known |= is_lost || announced.is_some();
        let fact = announced.map(|(id, origin)| Fact::AgentSession { id, origin: origin.as_str() });
        (fact, is_lost.then(|| Notice::warning(MEMORY_LOST)))
    }
}

/// Whether the agent says or does something with this event.
pub(super) fn speaks(event: &AgentEvent) -> bool {
    match event {
        AgentEvent::Text(words) | AgentEvent::Reasoning(words) => !words.is_empty(),
        AgentEvent::ToolStarted { .. }
        | AgentEvent::ToolFinished { .. }
        | AgentEvent::File { .. }
        | AgentEvent::Source { .. }
        | AgentEvent::Plan(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str) -> AgentEvent {
        AgentEvent::Session { id: id.into(), origin: SessionOrigin::New }
    }

    /// What is stored and whether a loss is told, event by event.
    fn heard(wanted: Option<&str>, was_given_up: bool, events: &[AgentEvent]) -> String {
        let mut conversation = Conversation::new(wanted.map(|id| id.parse().unwrap()), was_given_up);
        let news = events.iter().map(|event| match conversation.hear(event) {
            (Some(Fact::AgentSession { id, .. }), told) => format!("{id}{}", if told.is_some() { "!" } else { "" }),
            (None, Some(_)) => "!".to_owned(),
            _ => "-".to_owned(),
        });
        news.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_id_is_stored_when_asked_for_or_once_words_come() {
        let text = || AgentEvent::Text("a".into());
        for (wanted, given_up, events, news) in [
            (None, false, vec![session("a"), text(), text()], "- a -"),
            (Some("a"), false, vec![session("a"), text()], "a -"),
            (Some("a"), false, vec![session("b")], "-"),
            (Some("a"), false, vec![session("b"), AgentEvent::Status("x".into()), text(), text()], "- - b! -"),
            (Some("a"), false, vec![text(), session("b")], "- b!"),
            // The agent left it by itself, as it does when it is told to forget.
            (Some("a"), false, vec![session("a"), session("b"), text()], "a - b"),
            (Some("a"), false, vec![text(), text()], "- -"),
            (None, true, vec![session("b"), text(), text()], "- b! -"),
            (None, true, vec![text(), session("b")], "! b"),
            (None, false, vec![session(""), text()], "- -"),
            (None, false, vec![session("--help"), session("a\0"), text(), session("b")], "! - - b"),
            (Some("a"), false, vec![session("a\0"), text()], "! -"),
        ] {
            assert_eq!(heard(wanted, given_up, &events), news, "{wanted:?} {events:?}");
        }
    }

    #[test]
    fn only_errors_before_it_is_in_a_conversation_are_kept() {
        let mut conversation = Conversation::new(Some("a".parse().unwrap()), false);
        let limit = AgentError::of(crate::failure::ErrorClass::RateLimit, "wait");
        assert!(!conversation.keeps(&limit));
        assert!(conversation.keeps(&"first".into()) && conversation.keeps(&"second".into()));
        assert_eq!(conversation.take_start_error(), Some("first".into()));
        conversation.hear(&session("a"));
        assert!(!conversation.keeps(&"third".into()));
        assert!(!Conversation::new(None, false).keeps(&"new".into()));
    }
}

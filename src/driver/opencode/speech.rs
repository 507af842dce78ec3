//! What the agent writes and thinks, part by part: the server sends it in pieces as it comes, and as a whole at the end.
//!
//! Always: nothing is emitted twice, and nothing is lost if pieces were missed: the rest is taken from the whole.

use std::collections::HashMap;

use crate::agent_event::AgentEvent;

/// Whom a part addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    /// The user.
    Text,
    /// The agent itself.
    Reasoning,
}

impl Voice {
    fn says(self, news: String) -> AgentEvent {
        match self {
            Self::Text => AgentEvent::Text(news),
            Self::Reasoning => AgentEvent::Reasoning(news),
        }
    }
}

/// The state of a part.
#[derive(Debug)]
enum Part {
    /// The text emitted so far.
    Open(String),
    /// The same, but pieces were missed: the rest is emitted once the part is complete.
    Torn(String),
    /// Complete.
    Closed,
}

/// The parts of a turn.
#[derive(Debug, Default)]
pub(super) struct Speech {
    parts: HashMap<String, (Voice, Part)>,
    is_in_gap: bool,
}

impl Speech {
    /// Pieces are missed until [`Speech::caught_up`]: of every open part, and of those that begin meanwhile.
    pub(super) fn gap(&mut self) {
        self.is_in_gap = true;
        for (_, part) in self.parts.values_mut() {
            if let Part::Open(said) = part {
                *part = Part::Torn(std::mem::take(said));
            }
        }
    }

    /// Parts that begin from here on are received from their beginning.
    pub(super) fn caught_up(&mut self) {
        self.is_in_gap = false;
    }

    /// Handles the next piece of a part; returns what to emit.
    pub(super) fn piece(&mut self, id: &str, piece: &str) -> Option<AgentEvent> {
        match self.parts.get_mut(id)? {
            (voice, Part::Open(said)) => {
                said.push_str(piece);
                Some(voice.says(piece.to_owned()))
            }
            (_, Part::Torn(_) | Part::Closed) => None,
        }
    }

    /// Handles the current state of a part; returns what to emit.
    pub(super) fn stands(&mut self, id: &str, voice: Voice, text: &str, is_whole: bool) -> Option<AgentEvent> {
        let begins = if self.is_in_gap { Part::Torn } else { Part::Open };
        let (voice, part) = self.parts.entry(id.to_owned()).or_insert_with(|| (voice, begins(String::new())));
        let said = match part {
            Part::Open(said) => said,
            Part::Torn(said) if is_whole => said,
            Part::Torn(_) | Part::Closed => return None,
        };
        // A plugin may have changed text that was already emitted; that cannot be undone.
        let news = text.strip_prefix(said.as_str()).filter(|news| !news.is_empty()).map(str::to_owned);
        if is_whole {
            *part = Part::Closed;
        } else if let Some(news) = &news {
            said.push_str(news);
        }
        news.map(|news| voice.says(news))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Option<AgentEvent> {
        Some(AgentEvent::Text(text.to_owned()))
    }

    #[test]
    fn pieces_and_the_whole_say_everything_once() {
        let mut speech = Speech::default();
        assert_eq!(speech.piece("p", "lost"), None, "a part that nobody announced");
        assert_eq!(speech.stands("p", Voice::Text, "", false), None);
        assert_eq!(speech.piece("p", "a "), said("a "));
        assert_eq!(speech.piece("p", "b"), said("b"));
        assert_eq!(speech.stands("p", Voice::Text, "a b c", true), said(" c"));
        assert_eq!(speech.piece("p", "late"), None);
        assert_eq!(speech.stands("p", Voice::Text, "a b c d", true), None);
    }

    #[test]
    fn what_was_missed_comes_with_the_whole() {
        let mut speech = Speech::default();
        speech.stands("p", Voice::Text, "", false);
        speech.piece("p", "a ");
        speech.gap();
        assert_eq!(speech.stands("p", Voice::Text, "", false), None);
        assert_eq!(speech.stands("q", Voice::Reasoning, "", false), None);
        speech.caught_up();
        assert_eq!(speech.piece("p", "c "), None);
        assert_eq!(speech.piece("q", "y"), None);
        assert_eq!(speech.stands("p", Voice::Text, "a b c ", true), said("b c "));
        assert_eq!(speech.stands("q", Voice::Reasoning, "x y", true), Some(AgentEvent::Reasoning("x y".to_owned())));
        speech.stands("r", Voice::Text, "", false);
        assert_eq!(speech.piece("r", "new"), said("new"));
    }
}

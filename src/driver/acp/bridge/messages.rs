//! Determines to which turn a piece of text belongs, by the ids that an agent gives its messages.
//!
//! Always: text is late only if its id is that of the last message of the turn before, and the agent has begun another
//! message since. An agent that restarts its numbering in each turn shows that by another id of that turn, and loses no
//! text.

use std::collections::HashSet;

/// Maximum ids remembered for a turn.
const MAX_IDS: usize = 1000;

/// The message ids of a session.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// The ids of the turn before, or of the history, and the last of them.
    past: HashSet<String>,
    last: Option<String>,
    /// The ids of the current turn, and the newest of them.
    current: HashSet<String>,
    newest: Option<String>,
    has_text: bool,
    counts_anew: bool,
}

impl Messages {
    /// Records a message that arrives between two turns: it belongs to the past.
    pub(super) fn passed(&mut self, message: Option<&str>) {
        let Some(message) = message else { return };
        remember(&mut self.past, message);
        self.last = Some(message.to_owned());
    }

    /// Records text that arrives during a turn; returns whether it belongs to that turn.
    pub(super) fn is_of_turn(&mut self, message: Option<&str>) -> bool {
        let is_last = message.is_some() && message == self.last.as_deref();
        self.counts_anew |= !is_last && message.is_some_and(|id| self.past.contains(id));
        if is_last && self.has_text && !self.counts_anew && self.newest.as_deref() != message {
            return false;
        }
        self.has_text = true;
        if let Some(message) = message {
            remember(&mut self.current, message);
            self.newest = Some(message.to_owned());
        }
        true
    }

    /// The messages of the turn become the past.
    pub(super) fn end_turn(&mut self) {
        let ended = std::mem::take(self);
        self.past = if ended.current.is_empty() { ended.past } else { ended.current };
        self.last = ended.newest.or(ended.last);
    }
}

fn remember(ids: &mut HashSet<String>, id: &str) {
    if ids.len() < MAX_IDS {
        ids.insert(id.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(messages: &mut Messages, said: &[&str]) -> Vec<bool> {
        let shown = said.iter().map(|id| messages.is_of_turn(Some(id))).collect();
        messages.end_turn();
        shown
    }

    #[test]
    fn only_text_of_the_turn_before_is_late() {
        let mut messages = Messages::default();
        assert_eq!(turn(&mut messages, &["m1", "m2"]), [true, true]);
        assert_eq!(turn(&mut messages, &["m3", "m2", "m3"]), [true, false, true]);
    }

    #[test]
    fn an_agent_that_counts_anew_loses_no_text() {
        let mut messages = Messages::default();
        for _ in 0..3 {
            assert_eq!(turn(&mut messages, &["m1", "m2", "m3"]), [true; 3]);
        }
        let mut loaded = Messages::default();
        for id in ["m1", "m2"] {
            loaded.passed(Some(id));
        }
        assert_eq!(turn(&mut loaded, &["m1", "m2"]), [true; 2]);
    }
}

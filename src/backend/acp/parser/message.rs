//! The message that the model is in: where one begins, and whether it may have been said before.
//!
//! Agents ask the model again when its stream breaks. Some give the message another id then; some say it again under the
//! same one, and nothing tells but that it begins anew with the same words.

use crate::backend::{Again, AgentEvent};

/// Fewer characters at the beginning of a message are no sign that it begins anew: words come twice.
const SIGN_CHARS: usize = 8;

/// What is known of it.
#[derive(Default)]
pub(super) struct Message {
    id: Option<String>,
    /// Its first two pieces.
    beginning: Vec<AgentEvent>,
    /// A piece like the first, until the next one tells whether the message begins anew.
    held: Option<AgentEvent>,
    used_a_tool: bool,
}

impl Message {
    /// Takes a piece.
    pub(super) fn add(&mut self, id: Option<&str>, said: AgentEvent, events: &mut Vec<AgentEvent>) {
        let is_other = id.is_some() && self.id.is_some() && self.id.as_deref() != id;
        if is_other || self.used_a_tool {
            self.let_go(events);
            if is_other {
                events.push(AgentEvent::MessageBegan(if self.used_a_tool { Again::No } else { Again::Perhaps }));
            }
            *self = Self::default();
        }
        if id.is_some() {
            self.id = id.map(str::to_owned);
        }
        match self.held.take() {
            Some(held) if self.beginning.get(1) == Some(&said) => {
                events.extend([AgentEvent::MessageBegan(Again::Perhaps), held, said]);
            }
            held => {
                events.extend(held);
                if self.is_sign() && self.beginning.first() == Some(&said) {
                    self.held = Some(said);
                    return;
                }
                if self.beginning.len() < 2 {
                    self.beginning.push(said.clone());
                }
                events.push(said);
            }
        }
    }

    /// A tool is used: what comes then is not said again.
    pub(super) fn used_a_tool(&mut self) {
        self.used_a_tool = true;
    }

    /// Nothing comes that could tell more.
    pub(super) fn let_go(&mut self, events: &mut Vec<AgentEvent>) {
        events.extend(self.held.take());
    }

    /// Whether the beginning is such that it hardly comes twice in a message.
    fn is_sign(&self) -> bool {
        let [AgentEvent::Text(first), AgentEvent::Text(second)] = &self.beginning[..] else { return false };
        self.id.is_some() && first != second && first.chars().chain(second.chars()).count() >= SIGN_CHARS
    }
}

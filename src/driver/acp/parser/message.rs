//! The message that the model is in, and where another begins.
//!
//! Always: nothing is passed over. ACP has no sign that a model was asked again: words that come twice are said twice.

use crate::agent_event::{Again, AgentEvent};

/// What is known of it.
#[derive(Default)]
pub(super) struct Message {
    id: Option<String>,
}

impl Message {
    /// Takes a piece.
    pub(super) fn add(&mut self, id: Option<&str>, said: AgentEvent, events: &mut Vec<AgentEvent>) {
        if let Some(id) = id {
            if self.id.as_deref().is_some_and(|known| known != id) {
                events.push(AgentEvent::MessageBegan(Again::No));
            }
            self.id = Some(id.to_owned());
        }
        events.push(said);
    }
}

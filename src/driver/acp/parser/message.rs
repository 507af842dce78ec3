//! The model's current message, and where another one begins.
//!
//! Always: nothing is skipped. ACP does not report that a model was asked again, so text that arrives twice is shown twice.

use crate::agent_event::{Again, AgentEvent};

#[derive(Default)]
pub(super) struct Message {
    id: Option<String>,
}

impl Message {
    /// Adds a piece, after a boundary if its id differs.
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

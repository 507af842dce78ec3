//! What an agent says beside its message: which of its events are facts to store.

use crate::backend::AgentEvent;
use crate::failure::AgentError;
use crate::store::fact::Fact;

/// What is stored of an event beside what readers are told.
pub(super) fn fact_of(event: &AgentEvent) -> Option<Fact> {
    match event {
        AgentEvent::Session { id, origin } => Some(Fact::AgentSession { id: id.clone(), origin: origin.as_str() }),
        AgentEvent::Title(title) => Some(Fact::Title(title.clone())),
        AgentEvent::Advertised(advertised) => Some(Fact::Advertised(advertised.to_string())),
        AgentEvent::Usage(usage) => Some(Fact::Usage(usage.clone())),
        AgentEvent::TotalUsage(total) => Some(Fact::TotalUsage(total.clone())),
        AgentEvent::Error(AgentError { class: Some(class), retry_at, .. }) => {
            Some(Fact::Failure { class: *class, retry_at: *retry_at })
        }
        _ => None,
    }
}

//! Turns the agent's output into chunks for readers and facts to store.
//!
//! Always: an error that the agent reports because it is being stopped is not an error of the turn; one before that is.

use super::conversation::speaks;
use super::{Abandoned, Drive};
use crate::agent::Agent;
use crate::agent_event::AgentEvent;
use crate::chunk::Chunk;
use crate::driver::Driver;
use crate::failure::AgentError;
use crate::process::Record;
use crate::run::Cause;
use crate::store::fact::Fact;

impl Drive<'_> {
    /// Hears the new events of the records. `asked` is what the agent was asked to stop for.
    pub(super) fn hear(
        &mut self,
        agent: &Agent,
        driver: &dyn Driver,
        records: &mut Vec<Record>,
        asked: Option<Cause>,
    ) -> (Vec<Chunk>, Vec<Fact>) {
        let (mut chunks, mut facts) = (Vec::new(), Vec::new());
        let option_rules = self.leased.rules(&self.shared.config);
        for record in records.drain(..) {
            if record.offset <= self.offset {
                for event in &record.events {
                    // Its chunks and facts are stored already.
                    self.conversation.hear(event);
                    self.note(event, asked);
                }
                self.turn.hear_again(record.events, record.offset == self.offset);
                continue;
            }
            self.offset = record.offset;
            for event in record.events {
                let (fact, notice) = self.conversation.hear(&event);
                facts.extend(fact);
                chunks.extend(notice.into_iter().flat_map(|notice| self.turn.hear(AgentEvent::Notice(notice))));
                if self.note(&event, asked) {
                    continue;
                }
                facts.extend(Self::fact_of(&event));
                match event {
                    AgentEvent::Permission(mut request) => {
                        // An option that would lift the agent's limits for the rest of its session is not offered.
                        request.options.retain(|option| !option_rules.refuses_answer(option, self.advertised.as_ref()));
                        let now = self.shared.store.clock().now();
                        let (rules, turn) = (&agent.permissions, &mut self.turn);
                        let (fact, said) = self.prompts.hear(request, rules, now, turn, driver);
                        facts.extend(fact);
                        chunks.extend(said);
                    }
                    AgentEvent::PermissionWithdrawn(request) => {
                        let (over, said) = self.prompts.withdrawn(&request, &mut self.turn);
                        facts.extend(over);
                        chunks.extend(said);
                    }
                    event => {
                        if let AgentEvent::ToolFinished { id, .. } = &event {
                            facts.extend(self.prompts.finished(self.turn.call_id(id)));
                        }
                        chunks.extend(self.turn.hear(event));
                    }
                }
            }
        }
        (chunks, facts)
    }

    /// Keeps what may decide the end of the turn, and lines for the agent. Returns whether readers hear nothing of the event.
    fn note(&mut self, event: &AgentEvent, asked: Option<Cause>) -> bool {
        match event {
            AgentEvent::Error(error) if asked.is_some() => {
                self.late_error.get_or_insert_with(|| error.clone());
                true
            }
            AgentEvent::Error(error) => self.conversation.keeps(error),
            AgentEvent::Trouble(error) => {
                self.trouble = Some(error.clone());
                true
            }
            AgentEvent::Advertised(advertised) => {
                self.advertised = Some(advertised.clone());
                false
            }
            AgentEvent::Refused(line) => {
                self.prompts.untold.push_back(line.clone());
                true
            }
            event => {
                if speaks(event) {
                    self.trouble = None;
                }
                false
            }
        }
    }

    /// The fact to store for an event, beside the chunks for readers.
    fn fact_of(event: &AgentEvent) -> Option<Fact> {
        match event {
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

    /// Reports a late error: the agent had ended before it could be stopped, so the error is one of the turn.
    pub(super) async fn report(&mut self, error: Option<AgentError>) -> Result<(), Abandoned> {
        let Some(event) = error.map(AgentEvent::Error) else { return Ok(()) };
        let facts = Self::fact_of(&event).into_iter().collect();
        let chunks = self.turn.hear(event);
        self.append(chunks, facts, false).await
    }

    /// Reports what the agent could not recover from: a turn that has no end of its own failed because of that.
    pub(super) async fn report_why_it_ended(&mut self) -> Result<(), Abandoned> {
        let start_error = self.conversation.take_start_error();
        self.report(start_error).await?;
        let is_explained = self.turn.has_ended() || self.turn.agent_error().is_some();
        let trouble = self.trouble.take().filter(|_| !is_explained);
        self.report(trouble).await
    }
}

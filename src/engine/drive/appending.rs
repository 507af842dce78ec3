//! Stores what was heard: events, facts, and now and then the message so far.

use std::sync::Arc;

use super::abandoned::Abandoned;
use super::{Drive, SMALL_MESSAGE_BYTES};
use crate::busy::off_executor;
use crate::chunk::Chunk;
use crate::engine::progress::progress;
use crate::engine::replay::settle_cost;
use crate::store::event::Append;
use crate::store::fact::Fact;

impl Drive<'_> {
    pub(super) async fn append(
        &mut self,
        chunks: Vec<Chunk>,
        mut facts: Vec<Fact>,
        snapshot: bool,
    ) -> Result<(), Abandoned> {
        if chunks.is_empty() && facts.is_empty() {
            return Ok(());
        }
        facts.extend(progress(self.turn.fold()).filter(|_| snapshot).map(Fact::Progress));
        let bytes = self.turn.fold().bytes();
        let memory = match &self.memory {
            // What was heard already holds memory: waiting for more could last for ever.
            Some(memory) if snapshot && bytes > SMALL_MESSAGE_BYTES => memory.try_output(settle_cost(bytes)),
            _ => None,
        };
        let snapshot = snapshot && (bytes <= SMALL_MESSAGE_BYTES || memory.is_some());
        let said = chunks.iter().any(Chunk::is_said);
        let work = self.unstored.max(if snapshot { bytes } else { 0 });
        let (events, parts) = off_executor(work, || {
            // One by one, so that a large event is not in memory twice.
            let events: Vec<_> = chunks.into_iter().map(|chunk| chunk.to_json()).collect();
            (events, (snapshot && !self.turn.fold().is_empty()).then(|| self.turn.fold().parts_json().into()))
        });
        let append = Append {
            lease: self.leased.lease,
            session: self.leased.session,
            run_id: self.leased.run,
            said,
            events: Arc::new(events),
            source_offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            parts,
            facts,
        };
        match self.retry_write(|| self.shared.store.append(append.clone())).await {
            Err(Abandoned::Store(error)) if error.is_permanent() => {
                Err(Abandoned::Refused { error, bytes: append.events.iter().map(String::len).sum() })
            }
            appended => {
                appended??;
                Ok(())
            }
        }
    }
}

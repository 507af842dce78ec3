//! Which parts of the message belong to which block of the agent's, so that the agent can withdraw it.
//!
//! Always: a numbered block has parts of its own, whose ids end in that number. So the chunks say everything except which
//! block began last.

use std::collections::HashMap;

use super::Turn;
use crate::chunk::{Chunk, Retracted};

/// Separates the number of a block in the id of a part.
const MARK: &str = "-block-";

/// The blocks that an agent numbered.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Blocks {
    newest: Option<u64>,
    parts: HashMap<u64, Vec<usize>>,
}

impl Blocks {
    /// The id of a part that belongs to the newest block.
    pub(super) fn name(&self, id: String) -> String {
        self.newest.map_or_else(|| id.clone(), |block| format!("{id}{MARK}{block}"))
    }

    /// Takes the next chunk; a part that it begins has this position.
    pub(super) fn take(&mut self, chunk: &Chunk, part: usize) {
        match chunk {
            Chunk::TextStart { id } | Chunk::ReasoningStart { id } => {
                if let Some(block) = id.rsplit_once(MARK).and_then(|(_, block)| block.parse().ok()) {
                    self.parts.entry(block).or_default().push(part);
                }
            }
            Chunk::DataRetracted { data, .. } => self.parts.retain(|_, parts| {
                parts.retain(|part| !data.parts.contains(part));
                !parts.is_empty()
            }),
            _ => {}
        }
    }

    /// What is said next belongs to no block.
    pub(super) fn none(&mut self) {
        self.newest = None;
    }

    /// Takes the newest block from the same turn, as it was heard before.
    pub(super) fn goes_on_with(&mut self, past: &Self) {
        self.newest = past.newest;
    }
}

impl Turn {
    /// What is said from here on gets parts of its own.
    pub(super) fn begin_block(&mut self, block: u64, said: &mut Vec<Chunk>) {
        if self.blocks.newest != Some(block) {
            self.close_block(said);
            self.blocks.newest = Some(block);
        }
    }

    /// The words of these blocks do not count any more. A block that said nothing, or is withdrawn already, is skipped.
    pub(super) fn withdraw(&mut self, blocks: &[u64], said: &mut Vec<Chunk>) {
        let mut parts: Vec<_> =
            blocks.iter().filter_map(|block| self.blocks.parts.get(block)).flatten().copied().collect();
        parts.sort_unstable();
        parts.dedup();
        if parts.is_empty() {
            return;
        }
        let id = self.begin_part("retracted", said);
        self.say(Chunk::DataRetracted { id, data: Retracted { parts } }, said);
    }
}

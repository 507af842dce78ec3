//! What a model says again. Its message broke off, the agent reports that it asks the model again, and most often the new
//! message begins with the same words.
//!
//! Always: nothing is taken for a repetition unless the agent's protocol says that the message is asked for again. Only
//! positions in the message are kept: the words are in the fold, so that a repetition is compared with what readers have.

use super::super::fold::{Block, Fold};
use crate::agent_event::Again;

/// The newest message of the model, and how far it was said again.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Repetition {
    /// Its text and reasoning parts.
    parts: Vec<usize>,
    /// How far it was said again, as long as it is.
    said: Option<Said>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Said {
    /// In which of its parts, and how many bytes of that.
    at: usize,
    bytes: usize,
}

/// What a piece of a message is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Heard {
    /// New, from this byte on. What is before that was said already.
    New(usize),
    /// Said already.
    Repeated,
    /// Not what was said: this is another message.
    Different,
}

/// A message that was taken for a repetition, and is none.
pub(super) struct Other {
    /// The parts of the message before it, which are void.
    pub(super) void: Vec<usize>,
    /// What it said so far.
    pub(super) said: Vec<(Block, String)>,
}

impl Repetition {
    /// A part of the message begins.
    pub(super) fn add(&mut self, part: usize) {
        self.parts.push(part);
    }

    /// A message begins that repeats the newest one. `false` if there is nothing to repeat: then it is a new one.
    pub(super) fn begin(&mut self, again: Again) -> bool {
        if again == Again::No || self.parts.is_empty() {
            return false;
        }
        self.said = Some(Said::default());
        true
    }

    /// Compares a piece of a message with what was said.
    pub(super) fn hear(&mut self, block: Block, delta: &str, fold: &Fold) -> Heard {
        let Some(mut said) = self.said else { return Heard::New(0) };
        let mut rest = delta;
        while let Some((kind, text)) = self.parts.get(said.at).and_then(|part| fold.block(*part)) {
            let known = text.get(said.bytes..).unwrap_or_default();
            if kind == block && known.starts_with(rest) {
                self.said = Some(Said { at: said.at, bytes: said.bytes + rest.len() });
                return Heard::Repeated;
            }
            match rest.strip_prefix(known).filter(|_| kind == block) {
                Some(beyond) => rest = beyond,
                None if known.is_empty() => {}
                None => return Heard::Different,
            }
            (said.at, said.bytes) = (said.at + 1, 0);
        }
        self.said = None;
        Heard::New(delta.len() - rest.len())
    }

    /// Something other than words follows, or the message is over. Returns the message if it was no repetition after all.
    pub(super) fn end(&mut self, fold: &Fold) -> Option<Other> {
        let is_whole = self.is_whole(fold);
        let said = self.said.take().filter(|_| !is_whole)?;
        let parts = std::mem::take(&mut self.parts);
        let blocks = parts.iter().take(said.at + 1).enumerate().filter_map(|(at, part)| {
            let (block, text) = fold.block(*part)?;
            let text = if at == said.at { text.get(..said.bytes)? } else { text };
            (!text.is_empty()).then(|| (block, text.to_owned()))
        });
        Some(Other { said: blocks.collect(), void: parts })
    }

    /// The message is over for good: the next is another one.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether a part of the message stands at or before this position: a tool behind it is one that it used.
    pub(super) fn is_before(&self, part: usize) -> bool {
        self.said.is_none() && self.parts.first().is_some_and(|first| *first < part)
    }

    /// The same in another fold of the same turn; nothing when that has other words. It may have more parts before the
    /// message: what was asked there.
    pub(super) fn found_in(self, one: &Fold, other: &Fold) -> Self {
        let more = other.len().saturating_sub(one.len());
        let found = self.parts.iter().all(|part| one.block(*part) == other.block(part + more));
        let parts = self.parts.iter().map(|part| part + more).collect();
        if found { Self { parts, ..self } } else { Self::default() }
    }

    fn is_whole(&self, fold: &Fold) -> bool {
        let Some(said) = self.said else { return true };
        let last = self.parts.last().and_then(|part| fold.block(*part));
        said.at + 1 == self.parts.len() && last.is_some_and(|(_, text)| text.len() == said.bytes)
    }
}

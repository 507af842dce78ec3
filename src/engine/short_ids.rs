//! Ids as people read and type them: cut to what tells them apart, and found again by their beginning.

use super::{Engine, EngineError};
pub use crate::store::short_id::IdKind;

/// The time in an id of ours, to the millisecond: what is made later differs within it.
const MIN_CHARS: usize = 13;
/// The length of a UUID as text.
const UUID_CHARS: usize = 36;

impl Engine {
    /// The ids that begin so, at most `limit` of each kind.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn ids_beginning_with(&self, prefix: &str, limit: i64) -> Result<Vec<(IdKind, String)>, EngineError> {
        Ok(self.shared.store.ids_beginning_with(prefix, limit).await?)
    }

    /// How many characters of each of some UUIDs tell it apart from every other id that is stored.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn short_id_chars(&self, ids: &[String]) -> Result<usize, EngineError> {
        let neighbours = self.shared.store.neighbours_of_ids(ids).await?;
        let needed = neighbours.iter().map(|(id, other)| 1 + common_chars(id, other)).max().unwrap_or(0);
        Ok(needed.clamp(MIN_CHARS, UUID_CHARS))
    }
}

fn common_chars(one: &str, other: &str) -> usize {
    one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count()
}

//! A turn that no worker holds in memory, read back from its events page by page.

use crate::chunk::Chunk;
use crate::engine::turn::Turn;
use crate::lease::RunKey;
use crate::store::{Store, StoreError};

/// The turn after all that is stored of it.
pub(super) async fn replay(store: &Store, run: RunKey) -> Result<Turn, StoreError> {
    let (mut turn, mut after) = (Turn::default(), 0);
    while let Some((chunks, last_seq)) = store.run_chunks(run, after).await? {
        turn.replay_more(chunks.iter().filter_map(|chunk| serde_json::from_str::<Chunk>(chunk).ok()));
        after = last_seq;
    }
    Ok(turn)
}

/// What it takes to store a message of this size at once: its JSON, and what SQLite copies of that to make a row of it.
pub(super) fn settle_cost(bytes: usize) -> usize {
    bytes.saturating_mul(3)
}

//! A turn that no worker holds in memory, read back from its events page by page.

use crate::busy::off_executor;
use crate::chunk::Chunk;
use crate::engine::turn::Turn;
use crate::lease::RunKey;
use crate::memory::Account;
use crate::store::{Store, StoreError};

/// The turn after all that is stored of it. Takes memory for that as the agent's reader did, and waits for it in the same way.
pub(super) async fn replay(store: &Store, run: RunKey, account: &Account) -> Result<Turn, StoreError> {
    let (mut turn, mut after) = (Turn::default(), 0);
    while let Some(page) = store.next_chunks(run, after).await? {
        let _read = account.read(page.bytes).await;
        let chunks = store.load_chunks(page).await?;
        off_executor(page.bytes, || {
            turn.replay_more(chunks.into_iter().filter_map(|chunk| serde_json::from_str::<Chunk>(&chunk).ok()));
        });
        account.set_message(turn.bytes());
        after = page.last_seq;
    }
    Ok(turn)
}

/// What it takes to store a message of this size at once: its JSON, and what SQLite copies of that to make a row of it.
pub(super) fn settle_cost(bytes: usize) -> usize {
    bytes.saturating_mul(3)
}

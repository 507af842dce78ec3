//! Rows that are larger than a page: they are read one at a time, so that readers of large rows take turns instead of
//! each holding copies of one.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A page ends in front of the row with which it would have more bytes: files of some MB are usual, 500 of them no page.
/// A single row may be larger.
pub(super) const PAGE_BYTES: i64 = 4 * 1024 * 1024;

/// The turns of readers of large rows.
#[derive(Debug, Clone)]
pub(super) struct Large {
    pieces: Arc<Semaphore>,
    pages: Arc<Semaphore>,
}

/// The turn of a page that holds a large row, until it is dropped; none for any other page.
#[derive(Debug, Clone, Default)]
pub struct Turn(#[expect(dead_code, reason = "it is held")] Option<Arc<OwnedSemaphorePermit>>);

impl Large {
    pub(super) fn new() -> Self {
        Self { pieces: Arc::new(Semaphore::new(1)), pages: Arc::new(Semaphore::new(1)) }
    }

    /// For a page of so many bytes.
    pub(super) async fn page(&self, bytes: i64) -> Turn {
        Turn(if bytes > PAGE_BYTES { turn(&self.pages).await } else { None })
    }

    /// For a piece of a large row, which SQLite reads whole for each piece.
    pub(super) async fn piece(&self) -> Turn {
        Turn(turn(&self.pieces).await)
    }
}

/// It fails only when the semaphore is closed, which it never is.
async fn turn(of: &Arc<Semaphore>) -> Option<Arc<OwnedSemaphorePermit>> {
    of.clone().acquire_owned().await.ok().map(Arc::new)
}

//! The length of the WAL. SQLite checkpoints it as it goes, but a long read transaction lets it only grow, and SQLite does not
//! shorten it before it is written from its beginning again. So the writer truncates it when it is idle: a long WAL takes disk
//! space and makes the first open after a crash slow.
//!
//! Always: truncating waits for no reader. If a reader is in the way, it is retried the next time the writer is idle.
//!
//! Proof: `tests/faults/locks.rs`, `the_wal_is_brought_back_when_a_reader_that_held_it_has_gone`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{AssertSqlSafe, SqliteConnection};

/// The writer counts as idle after this long without a write.
pub(super) const REST: Duration = Duration::from_secs(1);
/// The usual checkpoints leave a WAL of up to this length, which is overwritten from its beginning: twice their 4 MB.
const USUAL_BYTES: u64 = 8 * 1024 * 1024;

/// The WAL of the writer's database.
pub(super) struct Wal {
    path: PathBuf,
    /// Whether anything was written since it was last found to be short.
    pub may_be_long: bool,
}

impl Wal {
    pub(super) fn of(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        Self { path: path.into(), may_be_long: true }
    }

    /// Truncates it if it is long and no reader needs it.
    pub(super) async fn cut(&mut self, conn: &mut SqliteConnection) {
        let length = || std::fs::metadata(&self.path).map_or(0, |meta| meta.len());
        let before = length();
        if before > USUAL_BYTES {
            // With a busy timeout the checkpoint would hold the write lock while it waits for readers.
            let cut = "PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE)";
            if let Err(error) = sqlx::raw_sql(cut).execute(&mut *conn).await {
                tracing::warn!(%error, "failed to cut the WAL off; trying again");
            }
            let timeout = format!("PRAGMA busy_timeout = {}", super::connect::BUSY_TIMEOUT.as_millis());
            if let Err(error) = sqlx::raw_sql(AssertSqlSafe(timeout)).execute(conn).await {
                tracing::error!(%error, "failed to set the busy timeout again");
            }
        }
        let after = length();
        self.may_be_long = after > USUAL_BYTES;
        if after < before {
            tracing::info!(before_bytes = before, after_bytes = after, "cut the WAL off");
        }
    }
}

//! The length of the WAL. SQLite copies it into the database as it goes, but while somebody reads for long it can only grow,
//! and it never becomes shorter by itself before it is written from its beginning again. So the writer cuts it off when it
//! has a moment of rest: a long WAL takes its place on the disk and makes the first open after a crash slow.
//!
//! Always: this waits for nobody. A reader that is in the way is met again at the next moment of rest.
//!
//! Proof: `tests/faults/locks.rs`, `the_wal_is_brought_back_when_a_reader_that_held_it_has_gone`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{AssertSqlSafe, SqliteConnection};

/// The writer rests when nothing was written for this long.
pub(super) const REST: Duration = Duration::from_secs(1);
/// A WAL up to this length is what the usual checkpoints leave, and is written again from its beginning: twice their 4 MB.
const USUAL_BYTES: u64 = 8 * 1024 * 1024;

/// The WAL of the database that the writer writes.
pub(super) struct Wal {
    path: PathBuf,
    /// Something was written since it was last seen to be short.
    pub may_be_long: bool,
}

impl Wal {
    pub(super) fn of(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        Self { path: path.into(), may_be_long: true }
    }

    /// Cuts it off if it is long and nobody needs it.
    pub(super) async fn cut(&mut self, conn: &mut SqliteConnection) {
        let length = || std::fs::metadata(&self.path).map_or(0, |meta| meta.len());
        let before = length();
        if before > USUAL_BYTES {
            // With a busy timeout it would keep the write lock while it waits for readers.
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

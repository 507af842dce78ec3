//! An upgrade: the database of an older build is brought to the schema of this one.
//!
//! Always: nobody else has the file open then, so that no engine works on a schema that it does not know.
//!
//! Proof: `tests/it/store.rs`, `a_database_is_brought_to_a_new_schema_only_by_who_has_it_alone`.

use std::path::Path;
use std::time::{Duration, Instant};

use refinery_core::Runner;
use sqlx::SqliteConnection;

use super::file_identity::Presence;
use super::migrate::{self, Upgrade};
use super::{IsAlive, StoreError, worker};

/// Whoever brings the file to a new schema waits this long for others to close it: as long as for a lock of SQLite.
const ALONE_PATIENCE: Duration = super::connect::BUSY_TIMEOUT;
/// Between two looks whether they have.
const OTHERS_POLL_INTERVAL: Duration = Duration::from_millis(50);

impl Upgrade {
    /// What a migration is going to do to a database that has a schema already, if anything.
    pub(super) async fn pending(conn: &mut SqliteConnection, runner: &Runner) -> sqlx::Result<Option<Self>> {
        let from = sqlx::query_scalar("SELECT user_version FROM pragma_user_version").fetch_one(conn).await?;
        let upgrade = Self { from, to: migrate::newest(runner) };
        Ok((0 < upgrade.from && upgrade.from < upgrade.to).then_some(upgrade))
    }

    /// Waits a while until nobody else has the file open. Builds that did not lock it yet are known by their workers.
    pub(super) async fn wait_alone(
        self,
        path: &Path,
        presence: &Presence,
        conn: &mut SqliteConnection,
        is_alive: IsAlive,
    ) -> Result<(), StoreError> {
        let give_up = Instant::now() + ALONE_PATIENCE;
        loop {
            let is_alone = presence.try_alone()?;
            let workers = worker::of_any_schema(conn, is_alive).await?;
            if is_alone && workers.is_empty() {
                return Ok(());
            }
            if Instant::now() >= give_up {
                let workers =
                    if workers.is_empty() { "every process that has it open".into() } else { workers.join(", ") };
                return Err(StoreError::InUse { path: path.to_owned(), upgrade: self, workers });
            }
            tokio::time::sleep(OTHERS_POLL_INTERVAL).await;
        }
    }
}

//! Migrations: refinery's runner over an sqlx connection.
//!
//! Always: the check and all migrations share one `BEGIN IMMEDIATE`, so that two processes starting at once are serialised by
//! SQLite's write lock and a failed migration leaves the file as it was. Also used by `xtask`, which has to work while query
//! data is stale: no checked queries in here.

use std::cmp::Ordering;

use refinery_core::traits::r#async::{AsyncMigrate, AsyncQuery, AsyncTransaction};
use refinery_core::{Migration, Runner, error::Kind};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// "MSTN": marks a database as ours in its header.
pub const APPLICATION_ID: i32 = 0x4D53_544E;

/// A database could not be brought to the schema of this build.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The schema is of a newer build.
    #[error("its schema is version {found}, this build knows up to {known}: use a newer build of mainstay")]
    TooNew {
        /// Version in the file.
        found: i64,
        /// Newest version of this build.
        known: i64,
    },
    /// The schema needs a migration, which would be a write.
    #[error(
        "its schema is version {found}, this build needs {known}: start the daemon or run `mainstay sweep`, either of \
         which migrates it"
    )]
    TooOld {
        /// Version in the file.
        found: i64,
        /// Newest version of this build.
        known: i64,
    },
    /// An applied migration is not the one that this build has.
    #[error(
        "an earlier build of mainstay made it, with another form of migration {0}, and no later build can convert it: \
         use the build that made it to read what it holds (`mainstay messages SESSION --json`), or begin anew with \
         another --db"
    )]
    Divergent(String),
    /// A migration left dangling foreign keys.
    #[error("{0} rows point to rows that do not exist")]
    ForeignKeys(usize),
    /// Any other failure of the runner.
    #[error(transparent)]
    Refinery(#[from] Box<refinery_core::Error>),
    /// Any other failure of the database.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// The connection is inside an open transaction: refinery's checks and every migration share it.
struct InTransaction<'a>(&'a mut SqliteConnection);

fn undecodable(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

impl AsyncTransaction for InTransaction<'_> {
    type Error = sqlx::Error;

    async fn execute<'a, T: Iterator<Item = &'a str> + Send + 'a>(&mut self, queries: T) -> sqlx::Result<usize> {
        let mut count = 0;
        for query in queries {
            sqlx::raw_sql(AssertSqlSafe(query.to_owned())).execute(&mut *self.0).await?;
            count += 1;
        }
        Ok(count)
    }
}

impl AsyncQuery<Vec<Migration>> for InTransaction<'_> {
    async fn query(&mut self, query: &str) -> sqlx::Result<Vec<Migration>> {
        let rows = sqlx::query(AssertSqlSafe(query.to_owned())).fetch_all(&mut *self.0).await?;
        rows.into_iter()
            .map(|row| {
                let applied_on = OffsetDateTime::parse(row.try_get(2)?, &Rfc3339).map_err(undecodable)?;
                let checksum: u64 = row.try_get::<&str, _>(3)?.parse().map_err(undecodable)?;
                Ok(Migration::applied(row.try_get(0)?, row.try_get(1)?, applied_on, checksum))
            })
            .collect()
    }
}

impl AsyncMigrate for InTransaction<'_> {}

fn explain(runner: &Runner, error: refinery_core::Error) -> MigrateError {
    let known = newest(runner);
    match error.kind() {
        Kind::MissingVersion(m) if i64::from(m.version()) > known => {
            MigrateError::TooNew { found: i64::from(m.version()), known }
        }
        Kind::DivergentVersion(applied, _) => MigrateError::Divergent(applied.to_string()),
        _ => MigrateError::Refinery(Box::new(error)),
    }
}

/// The newest schema of `runner`.
pub fn newest(runner: &Runner) -> i64 {
    runner.get_migrations().iter().map(|m| i64::from(m.version())).max().unwrap_or(0)
}

/// Brings the database to the newest schema of `runner` and marks it as ours.
///
/// # Errors
/// [`MigrateError`]; the file is then as it was before.
pub async fn migrate(conn: &mut SqliteConnection, runner: &Runner) -> Result<(), MigrateError> {
    // A no-op inside a transaction, so it has to come before BEGIN.
    sqlx::raw_sql("PRAGMA foreign_keys = OFF").execute(&mut *conn).await?;
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    let report = runner.run_async(&mut InTransaction(&mut tx)).await.map_err(|error| explain(runner, error))?;
    if !report.applied_migrations().is_empty() {
        check_and_mark(&mut tx, newest(runner)).await?;
    }
    tx.commit().await?;
    sqlx::raw_sql("PRAGMA foreign_keys = ON").execute(&mut *conn).await?;
    Ok(())
}

/// Reads the whole file, so it is done after a migration and not at each start.
async fn check_and_mark(conn: &mut SqliteConnection, version: i64) -> Result<(), MigrateError> {
    let broken = sqlx::raw_sql("PRAGMA foreign_key_check").fetch_all(&mut *conn).await?.len();
    if broken > 0 {
        return Err(MigrateError::ForeignKeys(broken));
    }
    let mark = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version}");
    sqlx::raw_sql(AssertSqlSafe(mark)).execute(conn).await?;
    Ok(())
}

/// Whether the file has exactly the schema of `runner`. Reads a few rows.
///
/// # Errors
/// [`MigrateError`]: how it differs.
pub async fn check_applied(conn: &mut SqliteConnection, runner: &Runner) -> Result<(), MigrateError> {
    let question = "SELECT version, checksum FROM refinery_schema_history ORDER BY version";
    let applied: Vec<(i64, String)> = sqlx::query_as(question).fetch_all(conn).await?;
    let (found, known) = (applied.last().map_or(0, |(version, _)| *version), newest(runner));
    for migration in runner.get_migrations() {
        let (version, checksum) = (i64::from(migration.version()), migration.checksum().to_string());
        if applied.iter().any(|(found, other)| *found == version && *other != checksum) {
            return Err(MigrateError::Divergent(migration.to_string()));
        }
    }
    match found.cmp(&known) {
        Ordering::Less => Err(MigrateError::TooOld { found, known }),
        Ordering::Greater => Err(MigrateError::TooNew { found, known }),
        Ordering::Equal => Ok(()),
    }
}

/// An upgrade from one schema version to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upgrade {
    /// The version in the file.
    pub from: i64,
    /// The newest one of this build.
    pub to: i64,
}

impl std::fmt::Display for Upgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "from schema {} to {}", self.from, self.to)
    }
}

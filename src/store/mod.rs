//! The store: SQLite, and all SQL. One file per table; `writer.rs` owns the one connection that writes.
//!
//! Always: no write outside an explicit `BEGIN IMMEDIATE` (sqlx reports a failed commit only there); every write runs in the
//! writer's own task, where a cancelled caller cannot abort it; no read keeps a transaction open across an await of anything but
//! SQLite. An acknowledged write is committed. Each statement uses the index that was made for it and is prepared once: a limit
//! is written `?1 + 0`, because SQLite plans a statement again for each value of a bare `LIMIT ?1`.
//!
//! Proof: `tests/it/store/`, `tests/plans.rs`.

pub mod agent_session;
pub mod assignment;
pub mod audit;
pub mod backend;
mod backup;
pub mod backup_note;
mod companion;
mod connect;
mod error;
pub mod event;
pub mod fact;
mod file_identity;
mod inspect;
mod large;
pub mod message;
pub mod migrate;
pub mod permission;
mod read_only;
pub mod reading;
pub mod run;
pub mod session;
pub mod short_id;
pub mod slot;
mod stats;
mod text;
mod tx;
mod upgrade;
mod wal;
pub mod worker;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::config::Durability;
use crate::worker::ProcessIdentity;

use companion::beside;
use connect::{check_version, options};
use file_identity::{OpenFile, Opening, Place, Presence};
pub use file_identity::{agents_dir, token_file};
use inspect::Found;
use read_only::ReadOnly;

pub use error::StoreError;
pub use large::LargeText;
pub use migrate::Upgrade;
pub use tx::{Committed, Notice, Tx};
pub use writer::OnCommit;

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Read connections: a page of events takes under a millisecond, so a few serve thousands of readers.
const READERS: u32 = 4;
/// SQLite truncates the WAL file to this size when it restarts the WAL under load; `wal.rs` truncates it when the writer is
/// idle.
const WAL_SIZE_LIMIT_BYTES: &str = "67108864";
/// Files up to this size are checked as a whole at start (about 0.1 s); larger ones only where they are read.
const QUICK_CHECK_BYTES: u64 = 64 * 1024 * 1024;
/// The migrations of this build.
pub fn migrations() -> refinery::Runner {
    embedded::migrations::runner()
}

/// Whether a process is proven alive.
pub type IsAlive = fn(&ProcessIdentity) -> bool;

/// An open database.
#[derive(Clone)]
pub struct Store {
    path: Arc<Path>,
    place: Place,
    agents_dir: Arc<Path>,
    /// None if the file was opened read-only.
    writer: Option<writer::Handle>,
    /// How the file is read, if it was opened read-only.
    read_only: Option<Arc<ReadOnly>>,
    readers: SqlitePool,
    /// For `PRAGMA data_version`, whose values are comparable only on one connection.
    watcher: Arc<Mutex<Option<SqliteConnection>>>,
    large: large::Large,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database at `path`, creating and migrating it as needed. `on_commit` is called after each commit, in commit
    /// order; it must not block. `is_alive` determines which workers have to be stopped before a migration.
    ///
    /// # Errors
    /// The file is not ours, is damaged, was written by a newer build, is open elsewhere while it has to be migrated (after 5
    /// s), or cannot be written: see [`StoreError`]. An existing file is then left as it was.
    pub async fn open(
        path: &Path,
        durability: Durability,
        clock: Arc<dyn Clock>,
        on_commit: OnCommit,
        is_alive: IsAlive,
    ) -> Result<Self, StoreError> {
        let path = inspect::resolve(path)?;
        let options = options(&path);
        let file = {
            // No `PRAGMA optimize`: statistics of a small or idle file made appends 13 times slower once it was busy.
            let options = options.clone().pragma("journal_size_limit", WAL_SIZE_LIMIT_BYTES);
            let options = options.synchronous(match durability {
                Durability::Full => SqliteSynchronous::Full,
                Durability::Process => SqliteSynchronous::Normal,
            });
            open_for_writing(&path, options, &migrations(), is_alive).await?
        };
        let read = options.read_only(true);
        let failed = |error| StoreError::at_open(&path, error);
        let mut watcher = read.connect().await.map_err(failed)?;
        reach(&mut watcher).await.map_err(failed)?;
        let readers = readers(read).await.map_err(failed)?;
        file_identity::align_companions(&path);
        file.place.check()?;
        Ok(Self {
            place: file.place.clone(),
            agents_dir: file.presence.agents_dir.as_path().into(),
            writer: Some(writer::spawn(file, wal::Wal::of(&path), clock.clone(), on_commit)),
            read_only: None,
            path: path.into(),
            readers,
            watcher: Arc::new(Mutex::new(Some(watcher))),
            large: large::Large::new(),
            clock,
        })
    }

    /// Opens the database at `path` read-only. Nothing is created, migrated or written, and every write is refused.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::NotReadable`], [`StoreError::NotOurs`], [`StoreError::Schema`] when its schema is
    /// not that of this build, and other kinds for a file that cannot be used; [`StoreError::Changed`] when a process began to
    /// write meanwhile.
    pub async fn open_to_read(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let read_only = ReadOnly::of(path)?;
        match Self::opened_to_read(read_only.clone(), clock).await {
            Err(_) if read_only.is_passed() => Err(StoreError::Changed(read_only.path)),
            opened => opened,
        }
    }

    async fn opened_to_read(read_only: ReadOnly, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let path = read_only.path.clone();
        let failed = |error| StoreError::at_open_to_read(&path, error);
        let mut watcher = read_only.options.connect().await.map_err(failed)?;
        read_only.check(&mut watcher).await?;
        check_sound(&path, &mut watcher).await?;
        migrate::check_applied(&mut watcher, &migrations()).await.map_err(|source| match source {
            migrate::MigrateError::Sql(error) => failed(error),
            source => StoreError::Schema { path: path.clone(), source },
        })?;
        let readers = readers(read_only.options.clone()).await.map_err(failed)?;
        let place = Place::of(&path).map_err(|error| inspect::not_readable(&path, &error))?;
        Ok(Self {
            place,
            agents_dir: agents_dir(&path).into(),
            writer: None,
            read_only: Some(Arc::new(read_only)),
            path: path.into(),
            readers,
            watcher: Arc::new(Mutex::new(Some(watcher))),
            large: large::Large::new(),
            clock,
        })
    }

    /// Whether reads may be torn or stale, because the file was opened without a WAL and a process has begun to write.
    pub fn is_outdated(&self) -> bool {
        self.read_only.as_ref().is_some_and(|read_only| read_only.is_outdated())
    }

    fn writer(&self) -> Result<&writer::Handle, StoreError> {
        self.writer.as_ref().ok_or_else(|| StoreError::ReadOnly(self.path.to_path_buf()))
    }

    /// The path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of agents beside it.
    pub fn agents_dir(&self) -> &Path {
        &self.agents_dir
    }

    /// Checks that the open file is still the one at its path. Costs one `stat`.
    ///
    /// # Errors
    /// [`StoreError::Gone`], [`StoreError::Hidden`].
    pub fn check_place(&self) -> Result<(), StoreError> {
        self.place.check()
    }

    /// The clock that the timestamps of rows come from.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// A number that changes when any connection, of this or another process, has committed since the last call.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn data_version(&self) -> Result<i64, StoreError> {
        let mut watcher = self.watcher.lock().await;
        let watcher = watcher.as_mut().ok_or(StoreError::Closed)?;
        Ok(sqlx::query_scalar("PRAGMA data_version").fetch_one(watcher).await?)
    }

    /// Commits a transaction without a real change, to check that writes succeed.
    ///
    /// # Errors
    /// Why a write would fail.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        self.write(|tx| {
            Box::pin(async move {
                // Rewrites a page of the header, so that a full disk or a read-only file shows.
                let mark = sqlx::AssertSqlSafe(format!("PRAGMA application_id = {}", migrate::APPLICATION_ID));
                sqlx::raw_sql(mark).execute(&mut *tx.conn).await?;
                Ok(())
            })
        })
        .await
    }

    /// Bytes of the database file and of its write-ahead log; zero for a missing file.
    pub fn sizes(&self) -> (u64, u64) {
        let bytes = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        (bytes(&self.path), bytes(&beside(&self.path, "-wal")))
    }

    /// Number of writes in the writer's queue.
    pub fn writes_waiting(&self) -> usize {
        self.writer.as_ref().map_or(0, writer::Handle::waiting)
    }

    /// Waits until no write is accepted any more: the store was closed, or its writer ended abnormally. Never returns without a
    /// writer.
    pub async fn writer_ended(&self) {
        match &self.writer {
            Some(writer) => writer.commands.closed().await,
            None => std::future::pending().await,
        }
    }

    /// Refuses further writes, waits for those under way, and closes the file.
    pub async fn close(&self) {
        if let Some(watcher) = self.watcher.lock().await.take()
            && let Err(error) = watcher.close().await
        {
            tracing::debug!(%error, "failed to close the watching connection");
        }
        self.readers.close().await;
        // Last, so that SQLite writes the WAL back into the file and removes it.
        if let Some(writer) = &self.writer {
            writer.close().await;
        }
    }
}

/// Opens the read connections. All of them at once: one that is opened later might find another file at the path.
async fn readers(options: SqliteConnectOptions) -> sqlx::Result<SqlitePool> {
    SqlitePoolOptions::new()
        .min_connections(READERS)
        .max_connections(READERS)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(|conn, _| Box::pin(reach(conn)))
        .connect_with(options)
        .await
}

/// Whether there is a database at `path`, or a file that counts as one until it is opened.
///
/// # Errors
/// Why that cannot be determined, or why the file cannot be used.
pub fn database_exists(path: &Path) -> Result<bool, StoreError> {
    match inspect::resolve(path) {
        Err(StoreError::NoDirectory(_)) => Ok(false),
        path => Ok(inspect::look(&path?)? == Found::File),
    }
}

/// The newest schema that this build knows.
pub fn newest_schema() -> i64 {
    migrations().get_migrations().iter().map(|migration| i64::from(migration.version())).max().unwrap_or_default()
}

/// The database file, at its resolved path, and its companions, whether they exist or not.
pub fn files(path: &Path) -> [PathBuf; 4] {
    [path.to_owned(), beside(path, "-wal"), beside(path, "-shm"), beside(path, "-lock")]
}

/// Creates, checks and migrates the file under a separate lock: switching a new file to WAL needs exclusive access, for which
/// SQLite's busy timeout does not wait.
async fn open_for_writing(
    path: &Path,
    options: SqliteConnectOptions,
    migrations: &refinery::Runner,
    is_alive: IsAlive,
) -> Result<OpenFile, StoreError> {
    if inspect::look(path)? == Found::File {
        inspect::check_ours(path).await?;
    }
    let opening = {
        let path = path.to_owned();
        let begun = tokio::task::spawn_blocking(move || Opening::begin(&path)).await;
        begun.map_err(|error| StoreError::Invalid(error.to_string()))??
    };
    let failed = |error| StoreError::at_open(path, error);
    if !opening.is_new {
        // A file is not changed, not even its journal mode, before it is known to be ours.
        let mut conn = options.clone().connect().await.map_err(failed)?;
        check_ours(path, &mut conn).await?;
        conn.close().await.map_err(failed)?;
    }
    let presence = Presence::beside(path)?;
    let mut conn = options.journal_mode(SqliteJournalMode::Wal).connect().await.map_err(failed)?;
    check_sqlite(&mut conn).await?;
    if let Some(upgrade) = Upgrade::pending(&mut conn, migrations).await.map_err(failed)? {
        upgrade.wait_alone(path, &presence, &mut conn, is_alive).await?;
    }
    migrate::migrate(&mut conn, migrations).await.map_err(|source| match source {
        migrate::MigrateError::Sql(error) => failed(error),
        source => StoreError::Schema { path: path.to_owned(), source },
    })?;
    presence.share()?;
    Ok(OpenFile { conn, place: opening.place, presence })
}

/// Opens the WAL and its index, which SQLite does not open before the first read.
async fn reach(conn: &mut SqliteConnection) -> sqlx::Result<()> {
    sqlx::raw_sql("SELECT 1 FROM sqlite_schema LIMIT 1").execute(conn).await?;
    Ok(())
}

async fn check_ours(path: &Path, conn: &mut SqliteConnection) -> Result<(), StoreError> {
    let failed = |error| StoreError::at_open(path, error);
    let (id, tables): (i32, i64) = sqlx::query_as(
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT count(*) FROM sqlite_schema)",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(failed)?;
    if id != migrate::APPLICATION_ID && (id != 0 || tables > 0) {
        return Err(StoreError::NotOurs(path.to_owned()));
    }
    check_sound(path, conn).await
}

async fn check_sound(path: &Path, conn: &mut SqliteConnection) -> Result<(), StoreError> {
    let failed = |error| StoreError::at_open(path, error);
    if fs::metadata(path).is_ok_and(|meta| meta.len() <= QUICK_CHECK_BYTES) {
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(conn).await.map_err(failed)?;
        if found != "ok" {
            return Err(StoreError::Damaged { path: path.to_owned(), detail: found });
        }
    }
    Ok(())
}

async fn check_sqlite(conn: &mut SqliteConnection) -> Result<(), StoreError> {
    check_version(conn).await?;
    // SQLite ignores a misspelt or refused pragma silently.
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *conn).await?;
    if mode != "wal" {
        return Err(StoreError::Invalid(format!("a journal in mode {mode:?} where \"wal\" is needed")));
    }
    Ok(())
}

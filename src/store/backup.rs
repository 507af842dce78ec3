//! Backup: a compact copy of the database, made while other processes write to it.
//!
//! Always: nothing is overwritten, and the target name holds either a complete, checked copy or nothing. A copy knows no
//! processes: an engine that opens it, even on this machine and while the agents of the original are running, neither finds nor
//! ends any of them. To that end its unsettled runs count their leases from a new [`Generation`](crate::run::Attempt).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};

use super::backup_note::{self, Note};
use super::companion::beside;
use super::connect::options;
use super::reading::Reading;
use super::{StoreError, audit};
use crate::audit::Check;
use crate::run::Attempt;

/// Row counts of the tables that only grow.
type Counts = (i64, i64, i64, i64);

impl Reading {
    /// Writes a copy to `to`, readable by its owner only. Returns its size in bytes. A cancelled call leaves nothing behind;
    /// what a killed process leaves is removed by the sweep (`backup_note.rs`).
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::NotCopied`], [`StoreError::DiskFull`], or any failure of the database. Nothing is
    /// left then.
    pub async fn back_up(&mut self, to: &Path) -> Result<u64, StoreError> {
        let to = std::path::absolute(to).map_err(|error| not_copied(to, &error))?;
        if fs::symlink_metadata(&to).is_ok() {
            return Err(StoreError::Exists(to));
        }
        // SQLite would take a file that exists there for a part of the copy, or the copy for a part of it.
        let companions = super::files(&to).into_iter().skip(1).chain([beside(&to, "-journal")]);
        if let Some(left) = companions.into_iter().find(|companion| fs::symlink_metadata(companion).is_ok()) {
            return Err(wrong(&to, &format!("{} is there, which would be taken for a part of it", left.display())));
        }
        if super::files(self.path()).into_iter().chain([beside(self.path(), "-journal")]).any(|file| file == to) {
            return Err(wrong(&to, "the database would take it for a part of itself"));
        }
        if let Some(source) = self.other_build().await {
            return Err(StoreError::Schema { path: self.path().to_owned(), source });
        }
        let part = Part::create(self.path(), &to)?;
        let (version, before) = (self.schema_version().await?, counts(&mut self.conn).await?);
        let name = part.path.to_str().ok_or_else(|| wrong(&to, "its path is no UTF-8"))?;
        sqlx::query("VACUUM INTO ?1").bind(name).execute(&mut self.conn).await?;
        if let Some(finding) = forget_processes(&part.path).await?.findings.first() {
            return Err(wrong(&to, &format!("the copy is damaged: {}", finding.detail)));
        }

        let mut copy = Reading::open(&part.path).await?;
        let (found, after) = (copy.schema_version().await?, counts(&mut copy.conn).await?);
        copy.close().await;
        let grew = after.0 >= before.0 && after.1 >= before.1 && after.2 >= before.2 && after.3 >= before.3;
        if found != version || !grew {
            return Err(wrong(&to, &format!("the copy lacks something: {after:?} rows of {before:?}")));
        }
        if self.is_outdated() {
            return Err(StoreError::Changed(self.path().to_owned()));
        }
        let path = to.clone();
        let kept = tokio::task::spawn_blocking(move || part.keep_as(&path)).await;
        kept.map_err(|error| wrong(&to, &error.to_string()))?
    }
}

fn not_copied(path: &Path, error: &io::Error) -> StoreError {
    if error.kind() == io::ErrorKind::StorageFull { StoreError::DiskFull } else { wrong(path, &error.to_string()) }
}

fn wrong(path: &Path, detail: &str) -> StoreError {
    StoreError::NotCopied { path: path.to_owned(), detail: detail.to_owned() }
}

async fn counts(conn: &mut SqliteConnection) -> Result<Counts, StoreError> {
    let question =
        "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM messages), (SELECT count(*) FROM runs),
                           (SELECT count(*) FROM events)";
    Ok(sqlx::query_as(question).fetch_one(conn).await?)
}

/// Removes the processes of the original from a copy. Its running runs then look as if their worker had vanished, and the next
/// engine that opens the copy settles them. Returns the check of the copy: made here, because SQLite checks the constraints of
/// rows only on a writable connection.
async fn forget_processes(copy: &Path) -> Result<Check, StoreError> {
    let options = options(copy).journal_mode(SqliteJournalMode::Memory).synchronous(SqliteSynchronous::Full);
    let mut conn = options.connect().await?;
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    let (first, count) = (Attempt::new_generation(), Attempt::COUNT_MASK);
    let forget = format!(
        "UPDATE backends SET state = 'stopped', stopped_at = used_at, reason = 'left with the original'
             WHERE state <> 'stopped';
         UPDATE backends SET worker_key = NULL, pid_scope = NULL, pid = NULL, pid_started_at = NULL, shim_secret = NULL,
             endpoint = NULL, not_before = NULL;
         UPDATE runs SET lease_token = {first} | (lease_token & {count}) WHERE status IN ('queued', 'running');
         UPDATE runs SET lease_expires_at = 0, pid_scope = NULL, pid = NULL, pid_started_at = NULL, shim_attempt = NULL,
             shim_secret = NULL WHERE status = 'running';
         DELETE FROM workers WHERE NOT EXISTS (SELECT 1 FROM runs WHERE lease_worker = workers.key);
         UPDATE workers SET pid_scope = '', pid = 0, pid_started_at = 0, capacity = 0"
    );
    sqlx::raw_sql(AssertSqlSafe(forget)).execute(&mut *tx).await?;
    tx.commit().await?;
    let check = audit::file(&mut conn, audit::Depth::Full).await;
    conn.close().await?;
    Ok(check)
}

/// An unfinished copy, beside its target; removed when dropped, unless it was kept.
struct Part {
    path: PathBuf,
    /// Dropped last.
    _note: Option<Note>,
}

impl Part {
    fn create(database: &Path, to: &Path) -> Result<Self, StoreError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let path = backup_note::part_of(to, &id);
        let note = Note::write(database, &path, &id);
        let created = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path);
        created.map_err(|error| not_copied(to, &error))?;
        Ok(Self { path, _note: note })
    }

    /// Syncs it to disk, renames it to the target and syncs the name, too. Blocking work.
    fn keep_as(self, to: &Path) -> Result<u64, StoreError> {
        let failed = |error: io::Error| not_copied(to, &error);
        let file = File::open(&self.path).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        match renameat_with(CWD, &self.path, CWD, to, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => return Err(StoreError::Exists(to.to_owned())),
            // Not every file system supports a rename that replaces nothing; there the earlier check has to do.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(&self.path, to).map_err(failed)?,
            renamed => renamed.map_err(|error| failed(error.into()))?,
        }
        let dir = to.parent().unwrap_or(Path::new("/"));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(bytes)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Fails if the copy was kept: then the file has another name.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(beside(&self.path, "-journal"));
    }
}

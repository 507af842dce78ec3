//! Notes of copies in the making: where the unfinished copy of a backup lies is written down beside the database first, so that
//! `doctor` and the sweep find what a backup that was killed has left, wherever that is.
//!
//! Always: a note is locked as long as its backup lives; the kernel lets go of the lock with the process. A copy is removed only
//! under the name that its own note gives it, and only in the very directory that was noted: a daemon may see another one at the
//! same path (`PrivateTmp`), and leaves the note to a process that sees the right one.
//! Deliberately absent: notes of users who may not write beside the database. What their killed backups leave is theirs to remove.
//!
//! Proof: `tests/faults/backup.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::place::{agents_dir, belong_to, beside};

/// Begins the names of notes among the directories of agents.
const PREFIX: &str = "backup-";
/// Ends the names of unfinished copies, behind their ids.
const PART: &str = ".part";
/// A path has 4 KiB at most.
const MAX_NOTE_BYTES: u64 = 64 * 1024;

/// A note of a copy in the making; removed when it is dropped.
pub(super) struct Note {
    path: PathBuf,
    _locked: File,
}

#[derive(Serialize, Deserialize)]
struct Content {
    copy: PathBuf,
    /// Device and inode of its directory.
    dir: (u64, u64),
}

/// An unfinished copy whose backup is gone.
#[derive(Debug)]
pub struct Unfinished {
    /// The copy; none when the backup was killed before it made one.
    pub copy: Option<PathBuf>,
    note: PathBuf,
    dir: (u64, u64),
    /// Held, so that no other process removes it at the same time.
    _locked: File,
}

/// The unfinished copy with this id of what is to be at a path.
pub(super) fn part_of(to: &Path, id: &str) -> PathBuf {
    beside(to, &format!(".{id}{PART}"))
}

impl Note {
    /// Notes where a copy of a database is going to be made; none where this user may not write beside the database.
    pub fn write(database: &Path, copy: &Path, id: &str) -> Option<Self> {
        let path = agents_dir(database).join(format!("{PREFIX}{id}"));
        let written = Self::create(database, &path, copy);
        written.inspect_err(|error| tracing::debug!(%error, path = %path.display(), "backup not noted")).ok()
    }

    fn create(database: &Path, path: &Path, copy: &Path) -> io::Result<Self> {
        let dir = fs::metadata(copy.parent().unwrap_or(Path::new("/")))?;
        let content = Content { copy: copy.to_owned(), dir: (dir.dev(), dir.ino()) };
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
        file.lock()?;
        let note = Self { path: path.to_owned(), _locked: file.try_clone()? };
        file.write_all(&serde_json::to_vec(&content)?)?;
        belong_to(database, path)?;
        Ok(note)
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // A sweep may have found it before it was locked.
        let _ = fs::remove_file(&self.path);
    }
}

/// The unfinished copies of backups that were killed, as the notes in a directory of agents have them. Only looks. Blocking work.
pub fn unfinished(agents_dir: &Path) -> Vec<Unfinished> {
    let entries = fs::read_dir(agents_dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| left_by(&entry.path())).collect()
}

fn left_by(note: &Path) -> Option<Unfinished> {
    let id = note.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(note).ok()?;
    if !file.metadata().ok()?.is_file() || file.try_lock().is_err() {
        return None;
    }
    let mut text = Vec::new();
    (&file).take(MAX_NOTE_BYTES).read_to_end(&mut text).ok()?;
    let content = serde_json::from_slice::<Content>(&text).ok();
    // A name that is not the note's own is none that we gave.
    let is_own = |copy: &Path| copy.to_string_lossy().ends_with(&format!(".{id}{PART}"));
    let content = content.filter(|content| is_own(&content.copy));
    let dir = content.as_ref().map_or((0, 0), |content| content.dir);
    Some(Unfinished { copy: content.map(|content| content.copy), note: note.to_owned(), dir, _locked: file })
}

impl Unfinished {
    /// Removes the copy and its note; false when the directory of the copy is not to be seen from here, so that it stays noted.
    /// Blocking work.
    ///
    /// # Errors
    /// The copy cannot be removed; it stays noted.
    pub fn remove(&self) -> io::Result<bool> {
        if let Some(copy) = &self.copy {
            let here = fs::metadata(copy.parent().unwrap_or(Path::new("/")));
            if !here.is_ok_and(|dir| (dir.dev(), dir.ino()) == self.dir) {
                return Ok(false);
            }
            for file in [copy.clone(), beside(copy, "-journal")] {
                match fs::remove_file(&file) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        fs::remove_file(&self.note)?;
        Ok(true)
    }
}

//! Notes of unfinished copies. A backup first writes a note beside the database that says where its unfinished copy is, so that
//! `doctor` and the sweep find what a killed backup has left, wherever that is.
//!
//! Always: a note is locked as long as its backup runs; the kernel releases the lock with the process. A copy is removed only
//! under the name that its own note gives it, and only in the same directory (by device and inode) that was noted: a daemon may
//! see another one at the same path (`PrivateTmp`), and leaves the note to a process that sees the right one. A note is not
//! trusted, because other users may be able to write one: only a file that the note's owner made and that looks like a copy of a
//! database is removed.
//! Deliberately absent: notes of users who may not write beside the database. They have to remove what their killed backups
//! leave.
//!
//! Proof: `tests/faults/backup.rs`.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::companion::beside;
use super::file_identity::agents_dir;

/// Prefix of the names of notes in the directory of agents.
const PREFIX: &str = "backup-";
/// Suffix of the names of unfinished copies, after their ids.
const PART: &str = ".part";
/// Enough for any path, which has 4 KiB at most.
const MAX_NOTE_BYTES: u64 = 64 * 1024;
/// The length of an id in hexadecimal digits.
const ID_DIGITS: usize = 32;
/// The first bytes of every SQLite database.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The note of an unfinished copy; removed when dropped.
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
    /// The user who made the note, and so the copy.
    owner: u32,
    dir: (u64, u64),
    /// Held, so that no other process removes it at the same time.
    _locked: File,
}

/// The path of the unfinished copy, with this id, of the target `to`.
pub(super) fn part_of(to: &Path, id: &str) -> PathBuf {
    beside(to, &format!(".{id}{PART}"))
}

impl Note {
    /// Writes the note of a copy that is going to be made; none if this user may not write beside the database.
    pub fn write(database: &Path, copy: &Path, id: &str) -> Option<Self> {
        let path = agents_dir(database).join(format!("{PREFIX}{id}"));
        let written = Self::create(&path, copy);
        written.inspect_err(|error| tracing::debug!(%error, path = %path.display(), "backup not noted")).ok()
    }

    fn create(path: &Path, copy: &Path) -> io::Result<Self> {
        let dir = fs::metadata(copy.parent().unwrap_or(Path::new("/")))?;
        let content = Content { copy: copy.to_owned(), dir: (dir.dev(), dir.ino()) };
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
        file.lock()?;
        let note = Self { path: path.to_owned(), _locked: file.try_clone()? };
        file.write_all(&serde_json::to_vec(&content)?)?;
        // The note stays owned by the user who makes the copy. The owner of the directory, the only one who can list it, may
        // read the note, too.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        Ok(note)
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // A sweep may have found it before it was locked.
        let _ = fs::remove_file(&self.path);
    }
}

/// The unfinished copies of killed backups, according to the notes in a directory of agents. Changes nothing. Blocking work.
pub fn unfinished(agents_dir: &Path) -> Vec<Unfinished> {
    let entries = fs::read_dir(agents_dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| left_by(&entry.path())).collect()
}

fn left_by(note: &Path) -> Option<Unfinished> {
    let id = note.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    if id.len() != ID_DIGITS || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(note).ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || file.try_lock().is_err() {
        return None;
    }
    let mut text = Vec::new();
    (&file).take(MAX_NOTE_BYTES).read_to_end(&mut text).ok()?;
    let content = serde_json::from_slice::<Content>(&text).ok();
    // Only a name that matches the note's id was given by us.
    let is_own = |copy: &Path| copy.is_absolute() && copy.to_string_lossy().ends_with(&format!(".{id}{PART}"));
    let content = content.filter(|content| is_own(&content.copy));
    let dir = content.as_ref().map_or((0, 0), |content| content.dir);
    let copy = content.map(|content| content.copy);
    Some(Unfinished { copy, note: note.to_owned(), owner: meta.uid(), dir, _locked: file })
}

impl Unfinished {
    /// Whether the copy exists, or may exist where this process cannot see it. Blocking work.
    pub fn may_be_there(&self) -> bool {
        let seen = |copy| -> io::Result<bool> {
            Ok(match self.open_dir(copy)? {
                Some(dir) => self.is_copy(&dir, name_of(copy))?,
                None => true,
            })
        };
        self.copy.as_deref().is_some_and(|copy| seen(copy).unwrap_or(true))
    }

    /// Removes the copy and its note; returns whether there was a copy. If this process cannot see the copy's directory, the
    /// note stays. Blocking work.
    ///
    /// # Errors
    /// The copy cannot be removed; the note stays.
    pub fn remove(&self) -> io::Result<bool> {
        let mut removed = false;
        if let Some(copy) = &self.copy {
            let Some(dir) = self.open_dir(copy)? else { return Ok(false) };
            if self.is_copy(&dir, name_of(copy))? {
                rustix::fs::unlinkat(&dir, name_of(copy), AtFlags::empty())?;
                removed = true;
            }
            let journal = beside(copy, "-journal");
            if self.has_made(&dir, name_of(&journal))?.is_some() {
                rustix::fs::unlinkat(&dir, name_of(&journal), AtFlags::empty())?;
            }
        }
        fs::remove_file(&self.note)?;
        Ok(removed)
    }

    /// A handle of the noted directory; none if another directory, or none, is at its path.
    fn open_dir(&self, copy: &Path) -> io::Result<Option<OwnedFd>> {
        let path = copy.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::openat(CWD, path, flags, Mode::empty()) else { return Ok(None) };
        let meta = rustix::fs::fstat(&dir)?;
        Ok(((meta.st_dev, meta.st_ino) == self.dir).then_some(dir))
    }

    /// The length of a file, if it is a regular file that the owner of the note made.
    fn has_made(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<Option<i64>> {
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(meta) => {
                let is_own = FileType::from_raw_mode(meta.st_mode).is_file() && meta.st_uid == self.owner;
                Ok(is_own.then_some(meta.st_size))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it is a copy that the owner of the note made. Its first page may be written last.
    fn is_copy(&self, dir: &OwnedFd, name: &OsStr) -> io::Result<bool> {
        match self.has_made(dir, name)? {
            None => Ok(false),
            Some(0) => Ok(true),
            Some(_) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
                let mut start = Vec::new();
                file.take(MAGIC.len() as u64).read_to_end(&mut start)?;
                Ok(start == MAGIC || start == [0; MAGIC.len()])
            }
        }
    }
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

//! The temporary directory of a turn: agents leave megabytes there, so each attempt gets a directory of its own,
//! removed when the attempt ends.
//!
//! It is created in `TMPDIR`, or in `/tmp` if that is not set. If that fails (a read-only or full file system, a
//! missing directory), it is created in the agent's own directory beside the database, which an engine needs anyway: a
//! turn does not depend on a directory that nothing else needs. That is the second choice, because agents leave much
//! there and create sockets, whose paths are limited to 108 bytes.
//!
//! Always: it is new and accessible only to its owner; a symlink in its place is removed, never followed.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::StartError;
use crate::failure::is_shortage;
use crate::run::Attempt;

/// Where temporary directories are created if `TMPDIR` is not set.
const DEFAULT_ROOT: &str = "/tmp";
/// The fallback directory inside the agent's own directory.
const FALLBACK: &str = "tmp";
/// A directory is usable only if a page can be written into it.
const PROBE: [u8; 4096] = [0; 4096];

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct TempDir {
    path: PathBuf,
}

impl TempDir {
    /// Creates the directory of an attempt whose agent has its own directory at `home`, and removes whatever is in its
    /// place.
    pub(super) fn create(attempt: Attempt, home: &Path) -> Result<Self, StartError> {
        Self::create_in(&root(), attempt, home)
    }

    fn create_in(root: &Path, attempt: Attempt, home: &Path) -> Result<Self, StartError> {
        let (mut failures, mut is_short) = (Vec::new(), false);
        for path in [root.join(name_of(attempt)), home.join(FALLBACK)] {
            match make(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) => {
                    is_short |= is_shortage(&error);
                    failures.push(format!("{}: {error}", path.display()));
                }
            }
        }
        Err(StartError { is_shortage: is_short, ..failures.join("; ").into() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "failed to remove a temporary directory");
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    // The engine and the shim, which creates the directory, have different working directories.
    if !path.is_absolute() {
        return Err(io::Error::other("the path is not absolute"));
    }
    remove(path)?;
    // `mkdir` fails if another process has put anything there meanwhile.
    DirBuilder::new().mode(0o700).create(path)?;
    // A full file system may have room for a directory, but for nothing in it.
    let probe = path.join("probe");
    let written = std::fs::write(&probe, PROBE).and_then(|()| std::fs::remove_file(&probe));
    if written.is_err() {
        // The error of the write is the one to report.
        let _ = remove(path);
    }
    written
}

/// Where temporary directories are created: `TMPDIR`, or `/tmp` if that is not set or empty.
pub fn root() -> PathBuf {
    let set = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
    set.map_or_else(|| DEFAULT_ROOT.into(), PathBuf::from)
}

/// Why agents do not get their temporary directories in `TMPDIR`, or `None` if they do. Changes nothing.
pub fn problem() -> Option<String> {
    if std::env::var_os("TMPDIR").is_some_and(|dir| dir.is_empty()) {
        return Some(format!("TMPDIR is set but empty: {DEFAULT_ROOT} is used"));
    }
    problem_of(&root())
}

fn problem_of(root: &Path) -> Option<String> {
    let shown = root.display();
    if !root.is_absolute() {
        return Some(format!("TMPDIR is {shown}, which is not an absolute path"));
    }
    if let Err(error) = rustix::fs::access(root, Access::WRITE_OK | Access::EXEC_OK) {
        return Some(format!("{shown} cannot be written ({})", io::Error::from(error)));
    }
    if !root.is_dir() {
        return Some(format!("{shown} is not a directory"));
    }
    let is_full = rustix::fs::statvfs(root).is_ok_and(|disk| disk.f_bavail == 0 && disk.f_blocks > 0);
    is_full.then(|| format!("the file system of {shown} is full"))
}

/// Removes the temporary directory of an attempt that is over, if it exists. One in the agent's own directory is
/// removed with that directory. Logs a failure. May be blocking work.
pub fn remove_temp_dir(attempt: Attempt) {
    if let Err(error) = remove(&root().join(name_of(attempt))) {
        tracing::warn!(run.id = %attempt.run, %error, "failed to remove the temporary directory of a run");
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn name_of(attempt: Attempt) -> String {
    format!("mainstay-{attempt}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn attempt() -> Attempt {
        Attempt { run: RunId::generate(), number: 1 }
    }

    #[test]
    fn is_private_and_goes_with_all_that_is_in_it() {
        let dir = TempDir::create(attempt(), Path::new("/nowhere")).unwrap();
        let path = dir.path().to_owned();
        assert_eq!(path.parent(), Some(root().as_path()));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::create_dir(path.join("deep")).unwrap();
        std::fs::write(path.join("deep/file"), "x").unwrap();
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn takes_the_place_of_whatever_was_there_and_follows_no_symlink() {
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("precious"), "x").unwrap();
        let attempt = attempt();
        let (path, home) = (root().join(name_of(attempt)), Path::new("/nowhere"));

        symlink(elsewhere.path(), &path).unwrap();
        let dir = TempDir::create(attempt, home).unwrap();
        assert!(path.symlink_metadata().unwrap().is_dir());
        std::fs::write(path.join("left"), "x").unwrap();
        symlink(elsewhere.path(), path.join("link")).unwrap();
        std::mem::forget(dir);

        let dir = TempDir::create(attempt, home).unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        drop(dir);
        std::fs::write(&path, "a file").unwrap();
        drop(TempDir::create(attempt, home).unwrap());
        assert!(!path.exists());
        assert!(elsewhere.path().join("precious").exists());
    }

    #[test]
    fn is_made_beside_the_spool_where_tmpdir_is_of_no_use() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        for root in [Path::new("/proc"), Path::new("missing"), Path::new("/missing"), &file, Path::new("")] {
            let dir = TempDir::create_in(root, attempt(), home.path()).unwrap();
            assert_eq!(dir.path(), home.path().join("tmp"));
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            // As root, /proc seems to be writable.
            assert!(problem_of(root).is_some() || root == Path::new("/proc"), "{root:?}");
            drop(dir);
            assert!(!home.path().join("tmp").exists());
        }
        assert_eq!(problem_of(home.path()), None);
        let error = TempDir::create_in(Path::new("/missing"), attempt(), Path::new("/proc")).unwrap_err().message;
        assert!(error.contains("/missing/mainstay-") && error.contains("; /proc/tmp: "), "{error}");
    }
}

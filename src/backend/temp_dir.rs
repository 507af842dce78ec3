//! The temporary directory of a turn: agents leave megabytes there, so each try at a run gets one of its own that goes
//! with it, and only it.
//!
//! Always: it is new, and only we may look into it; a symlink in its place is removed, never followed.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::run::Attempt;

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct TempDir {
    attempt: Attempt,
}

impl TempDir {
    /// Makes the directory of an attempt; whatever is in its place is removed.
    pub(super) fn create(attempt: Attempt) -> io::Result<Self> {
        let path = path_of(attempt);
        remove(&path)?;
        // `mkdir` fails when somebody else was quicker, whatever they put there.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { attempt })
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        remove_temp_dir(self.attempt);
    }
}

/// Removes the temporary directory of an attempt that is over, if there is one. What cannot be removed is logged. May be
/// blocking work.
pub fn remove_temp_dir(attempt: Attempt) {
    if let Err(error) = remove(&path_of(attempt)) {
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

/// Where the directory of an attempt is.
pub(super) fn path_of(attempt: Attempt) -> PathBuf {
    std::env::temp_dir().join(format!("mainstay-{attempt}"))
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
        let dir = TempDir::create(attempt()).unwrap();
        let path = path_of(dir.attempt);
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
        let path = path_of(attempt);

        symlink(elsewhere.path(), &path).unwrap();
        let dir = TempDir::create(attempt).unwrap();
        assert!(path.symlink_metadata().unwrap().is_dir());
        std::fs::write(path.join("left"), "x").unwrap();
        symlink(elsewhere.path(), path.join("link")).unwrap();
        std::mem::forget(dir);

        let dir = TempDir::create(attempt).unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        drop(dir);
        std::fs::write(&path, "a file").unwrap();
        drop(TempDir::create(attempt).unwrap());
        assert!(!path.exists());
        assert!(elsewhere.path().join("precious").exists());
    }
}

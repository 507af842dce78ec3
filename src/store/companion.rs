//! The files beside a database: their names, and which of them denies access.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

/// The path of a companion of the database file.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The system's error message, with the owner of the file if that is the reason.
pub(super) fn with_owner(path: &Path, error: &io::Error) -> String {
    let process = rustix::process::geteuid().as_raw();
    match fs::symlink_metadata(path) {
        Ok(meta) if error.kind() == io::ErrorKind::PermissionDenied && meta.uid() != process => {
            format!("{error}; it belongs to uid {}, and this process runs as uid {process}", meta.uid())
        }
        _ => error.to_string(),
    }
}

/// Which of the files of a database denies access; SQLite reports only that one of them does.
pub(super) fn denied(path: &Path, access: Access) -> Option<(PathBuf, String)> {
    let dir = path.parent().map(Path::to_owned);
    let files = [path.to_owned(), beside(path, "-wal"), beside(path, "-shm"), beside(path, "-journal")];
    files.into_iter().chain(dir).find_map(|file| match rustix::fs::accessat(CWD, &file, access, AtFlags::EACCESS) {
        Err(error @ (rustix::io::Errno::ACCESS | rustix::io::Errno::PERM | rustix::io::Errno::ROFS)) => {
            let detail = with_owner(&file, &error.into());
            Some((file, detail))
        }
        _ => None,
    })
}

//! The token that a daemon makes beside its database, read as its clients read it.

use std::path::{Path, PathBuf};

pub fn token_file(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push("-token");
    name.into()
}

/// None where the daemon has made none.
pub fn token(db: &Path) -> Option<String> {
    Some(std::fs::read_to_string(token_file(db)).ok()?.trim_end().to_owned())
}

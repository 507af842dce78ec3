//! Backup: a copy of a database that is in use.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{EngineError, READS_AT_MOST};
use crate::store::reading::Reading;

/// The result of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// Absolute path of the copy.
    pub path: PathBuf,
    /// Size of the copy.
    pub bytes: u64,
    /// How long the backup took.
    pub duration_ms: u64,
}

/// Copies the database at `path` to `to`, whether or not a process has it open: consistent, compact, checked and readable by
/// its owner only. A process that opens the copy knows nothing of those that work on the original.
///
/// # Errors
/// [`EngineError::Store`]; then nothing of the copy is left.
pub async fn back_up(path: &Path, to: &Path) -> Result<Backup, EngineError> {
    let began = std::time::Instant::now();
    let mut tries = 0;
    let bytes = loop {
        let mut reading = Reading::open(path).await?;
        let copied = reading.back_up(to).await;
        let is_outdated = reading.is_outdated();
        reading.close().await;
        tries += 1;
        match copied {
            Err(_) if is_outdated && tries < READS_AT_MOST => {}
            copied => break copied?,
        }
    };
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Backup { path: std::path::absolute(to).unwrap_or_else(|_| to.to_owned()), bytes, duration_ms })
}

//! An engine that only reads, for users who may not write or want to leave no trace.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Depth, Engine, EngineError};
use crate::audit::Audit;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::memory::Memory;
use crate::store::Store;
use crate::store::reading::Reading;

/// Poll interval for a writer that opens a file which is read without locks: two stats each time.
const OUTDATED_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often something is read again when a process wrote to the file meanwhile. The second time that process has the file
/// open, so that it is read with its WAL; only one that comes and goes each time needs more.
pub const READS_AT_MOST: usize = 5;

impl Engine {
    /// Opens the database at `path` to be read only: nothing is created, migrated or written, there or beside it, and every
    /// method that writes is refused. Where no process has the file open it is read without locks: then
    /// [`Engine::is_outdated`] tells whether what was read counts.
    ///
    /// # Errors
    /// [`EngineError::Store`] when the file cannot be read.
    pub async fn open_to_read(path: &Path, config: Config) -> Result<Self, EngineError> {
        let store = Store::open_to_read(path, Arc::new(SystemClock)).await?;
        let memory = Memory::new(config.engine.memory_limit);
        Ok(Self::assemble(config, store, memory, Arc::default(), Arc::default(), Arc::default(), |_, _| None))
    }

    /// Whether a process began to write to the file while it was read without locks: what was read since it was opened may be
    /// torn, and has to be read again by an engine that is opened anew.
    pub fn is_outdated(&self) -> bool {
        self.shared.store.is_outdated()
    }

    /// Returns once [`Engine::is_outdated`] is true.
    pub async fn outdated(&self) {
        while !self.is_outdated() {
            tokio::time::sleep(OUTDATED_POLL_INTERVAL).await;
        }
    }

    /// Checks what the file promises, while this engine and others keep writing. Reads all of it, so it may take a while.
    /// Problems are part of the answer.
    ///
    /// # Errors
    /// [`EngineError::Store`] when the file cannot be read at all.
    pub async fn audit(&self, depth: Depth) -> Result<Audit, EngineError> {
        let mut reading = Reading::open(self.shared.store.path()).await?;
        let audit = reading.audit(depth).await;
        reading.close().await;
        Ok(audit)
    }
}

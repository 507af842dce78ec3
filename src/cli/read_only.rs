//! Opens an engine on a read-only database.

use std::path::Path;

use anyhow::Context;

use crate::config::Config;
use crate::engine::{Engine, EngineError, READS_AT_MOST, StoreError};

/// Opens the database read-only.
pub(super) async fn open(db: &Path, config: &Config) -> anyhow::Result<Engine> {
    let mut tries = 1;
    loop {
        match Engine::open_to_read(db, config.clone()).await {
            Err(EngineError::Store(StoreError::Changed(_))) if tries < READS_AT_MOST => tries += 1,
            opened => return opened.context("failed to open the database"),
        }
    }
}

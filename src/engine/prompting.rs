//! What the options of a session mean for a turn that begins.

use std::path::PathBuf;

use crate::backend::probe;
use crate::options::SessionOptions;
use crate::run::{Cause, Outcome};
use crate::workspace::Workspace;

/// The options of a session, as they are stored.
pub(super) fn options_of(stored: &str) -> SessionOptions {
    // Checked when they were stored: they can only be unreadable after somebody else wrote them.
    serde_json::from_str(stored).unwrap_or_default()
}

/// Where a turn works: the directory of its session, else that of the workspace.
///
/// # Errors
/// How the run ends when the directory of the session is not there.
pub(super) async fn working_dir(options: &SessionOptions, workspace: &Workspace) -> Result<PathBuf, Outcome> {
    let Some(dir) = &options.cwd else { return Ok(workspace.dir.clone()) };
    let found = tokio::fs::metadata(dir).await;
    match probe::check_directory(dir, found, "change the option `cwd` of the session") {
        Ok(()) => Ok(dir.clone()),
        Err(problem) => Err(Outcome::because(Cause::SpawnFailed, format!("Failed to start agent: {problem}"))),
    }
}

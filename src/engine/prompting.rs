//! How the options of a session apply to a turn that begins.
//!
//! Always: what is checked is what the agent is told: a directory with its symlinks resolved replaces the one that was
//! requested.

use std::path::PathBuf;

use crate::options::{InvalidOption, SessionOptions};
use crate::policy::OptionRules;
use crate::process::program;
use crate::run::{Cause, Outcome};
use crate::workspace::Workspace;

/// The options of a session, as they are stored.
pub(super) fn options_of(stored: &str) -> SessionOptions {
    // Checked when they were stored: unreadable only if another program changed them.
    serde_json::from_str(stored).unwrap_or_default()
}

/// Checks the options of a turn, and determines where it works: in the directory of its session, else in that of the
/// workspace.
///
/// # Errors
/// How the run ends when an option is refused, or the directory of the session is not there.
pub(super) async fn working_dir(
    options: &mut SessionOptions,
    rules: &OptionRules,
    workspace: &Workspace,
) -> Result<PathBuf, Outcome> {
    // Options that the agent has advertised are checked where they are set.
    rules.check(options, None).map_err(|refused| not_allowed(&refused))?;
    let Some(cwd) = options.cwd.take() else { return Ok(workspace.dir.clone()) };
    let dir = resolve(rules, cwd).await.map_err(|refused| not_allowed(&refused))?;
    let found = tokio::fs::metadata(&dir).await;
    match program::check_directory(&dir, found, "change the option `cwd` of the session") {
        Ok(()) => Ok(options.cwd.insert(dir).clone()),
        Err(problem) => Err(Outcome::because(Cause::SpawnFailed, format!("Failed to start agent: {problem}"))),
    }
}

/// The resolved directory of a `cwd`, if it is allowed. Runs on a blocking thread: a file system may be slow.
pub(super) async fn resolve(rules: &OptionRules, cwd: PathBuf) -> Result<PathBuf, InvalidOption> {
    let rules = rules.clone();
    // It fails only when the runtime goes down.
    let stopped = |_| Err(InvalidOption::Value { key: "cwd".to_owned(), problem: "could not be judged".to_owned() });
    tokio::task::spawn_blocking(move || rules.resolve(&cwd)).await.unwrap_or_else(stopped)
}

fn not_allowed(refused: &InvalidOption) -> Outcome {
    let way_out = "change the option of the session, or the config of this process";
    Outcome::because(Cause::NotAllowed, format!("{refused}; {way_out}"))
}

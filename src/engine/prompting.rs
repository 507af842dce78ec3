//! What the options of a session mean for a turn that begins.
//!
//! Always: what is judged is what the agent is told: a directory with its links followed takes the place of the one that was
//! asked for.

use std::path::PathBuf;

use crate::options::{InvalidOption, SessionOptions};
use crate::policy::OptionRules;
use crate::process::program;
use crate::run::{Cause, Outcome};
use crate::workspace::Workspace;

/// The options of a session, as they are stored.
pub(super) fn options_of(stored: &str) -> SessionOptions {
    // Checked when they were stored: they can only be unreadable after somebody else wrote them.
    serde_json::from_str(stored).unwrap_or_default()
}

/// Judges the options of a turn, and finds out where it works: in the directory of its session, else in that of the workspace.
///
/// # Errors
/// How the run ends when an option is refused, or the directory of the session is not there.
pub(super) async fn working_dir(
    options: &mut SessionOptions,
    rules: &OptionRules,
    workspace: &Workspace,
) -> Result<PathBuf, Outcome> {
    // What the agent has advertised is judged where it is set.
    rules.check(options, None).map_err(|refused| not_allowed(&refused))?;
    let Some(cwd) = options.cwd.take() else { return Ok(workspace.dir.clone()) };
    let dir = resolve(rules, cwd).await.map_err(|refused| not_allowed(&refused))?;
    let found = tokio::fs::metadata(&dir).await;
    match program::check_directory(&dir, found, "change the option `cwd` of the session") {
        Ok(()) => Ok(options.cwd.insert(dir).clone()),
        Err(problem) => Err(Outcome::because(Cause::SpawnFailed, format!("Failed to start agent: {problem}"))),
    }
}

/// The directory that a `cwd` is, if it is allowed. A file system may take its time.
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

//! Exit statuses and error reports, for people and scripts.

use std::io;
use std::process::ExitCode;

use clap::error::ErrorKind;

use super::deciding::MayNotDecide;
use super::ids::AmbiguousId;
use super::plain::plain;
use crate::config::ConfigError;
use crate::engine::EngineError;
use crate::http;

/// The exit status of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command succeeded.
    Done,
    /// The run did not end as completed, or the operation failed.
    Failed,
    /// Wrong usage or config.
    Usage,
    /// Ctrl-C: a run that this command started is cancelled, one that it only watched goes on.
    Interrupted,
}

/// The command cannot be executed as given; the text says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The report of an error on stderr: a sentence for people, a JSON object on a line for programs.
pub fn report(error: &anyhow::Error, json: bool) -> String {
    match json {
        true => error_object(code(error), &format!("{error:#}")),
        false => format!("mainstay: {}\n", plain(&format!("{error:#}"))),
    }
}

/// The same for a command line that clap refuses; none for requested help, which is no error.
pub fn report_usage(error: &clap::Error, json: bool) -> Option<String> {
    if !json || !error.use_stderr() {
        return None;
    }
    let text = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "no command: `mainstay --help` lists them".to_owned(),
        _ => error.to_string(),
    };
    Some(error_object("usage", text.trim().trim_start_matches("error: ")))
}

/// The same shape as in HTTP.
fn error_object(code: &str, message: &str) -> String {
    format!("{}\n", serde_json::json!({"error": {"code": code, "message": message}}))
}

/// The kind of error, for programs: the codes of HTTP, and those of errors that only a command line can have.
fn code(error: &anyhow::Error) -> &'static str {
    if error.is::<Usage>() {
        return "usage";
    } else if error.is::<ConfigError>() {
        return "config";
    } else if error.is::<AmbiguousId>() {
        return "ambiguous_id";
    }
    match error.downcast_ref() {
        Some(MayNotDecide::Agent(_)) => return "run_may_not_decide",
        Some(MayNotDecide::Unknown(_)) | None => {}
    }
    match error.downcast_ref::<EngineError>().map(|error| http::Error::of(error).code()) {
        // "internal" is a server's code; a command says in its message what failed.
        Some("internal") | None => "failed",
        Some(code) => code,
    }
}

impl Exit {
    /// The status for an error that ended a command: the one table.
    pub fn of(error: &anyhow::Error) -> Self {
        if error.is::<Usage>() || error.is::<ConfigError>() { Self::Usage } else { Self::Failed }
    }
}

/// Whether the reader of our output went away, as `head` does when it has seen enough: no failure, and not reported.
pub fn reader_is_gone(error: &anyhow::Error) -> bool {
    let broken = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(broken))
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            // As a shell reports a process that SIGINT ended.
            Exit::Interrupted => 130,
        })
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn programs_are_told_the_kind_of_an_error() {
        let not_found = EngineError::NotFound { what: "session", id: "s\u{1b}".to_owned() };
        for (error, expected) in [
            (anyhow::Error::from(Usage("no".into())), r#"{"error":{"code":"usage","message":"no"}}"#),
            (
                anyhow::Error::from(not_found).context("failed to send"),
                r#"{"error":{"code":"not_found","message":"failed to send: there is no session \"s\\u{1b}\""}}"#,
            ),
            (anyhow::anyhow!("x"), r#"{"error":{"code":"failed","message":"x"}}"#),
        ] {
            assert_eq!(report(&error, true), format!("{expected}\n"));
            assert!(report(&error, false).starts_with("mainstay: "));
        }
    }

    #[test]
    fn errors_are_told_apart_by_kind() {
        let io = |kind| anyhow::Error::from(io::Error::from(kind)).context("failed to list runs");
        assert_eq!(Exit::of(&io(io::ErrorKind::NotFound)), Exit::Failed);
        assert!(reader_is_gone(&io(io::ErrorKind::BrokenPipe)));
        assert!(!reader_is_gone(&io(io::ErrorKind::NotFound)));
        let usage = Err::<(), _>(io::Error::other("x")).context(Usage("failed to read config".into()));
        assert_eq!(Exit::of(&usage.unwrap_err()), Exit::Usage);
    }
}

//! How the process ends, for scripts.

use std::io;
use std::process::ExitCode;

use crate::config::ConfigError;

/// The exit status of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Done,
    /// The run ended other than completed, or the operation failed.
    Failed,
    /// Wrong usage or config.
    Usage,
    /// Ctrl-C: a run that this command started is cancelled, one that it only watched goes on.
    Interrupted,
}

/// What was asked for cannot be asked for, in words for the person who did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

impl Exit {
    /// The status for an error that ended a command: the one table.
    pub fn of(error: &anyhow::Error) -> Self {
        if error.is::<Usage>() || error.is::<ConfigError>() { Self::Usage } else { Self::Failed }
    }
}

/// Whether the reader of our output went away, as `head` does when it has seen enough: no failure, and nobody to tell.
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
    fn errors_are_told_apart_by_kind() {
        let io = |kind| anyhow::Error::from(io::Error::from(kind)).context("failed to list runs");
        assert_eq!(Exit::of(&io(io::ErrorKind::NotFound)), Exit::Failed);
        assert!(reader_is_gone(&io(io::ErrorKind::BrokenPipe)));
        assert!(!reader_is_gone(&io(io::ErrorKind::NotFound)));
        let usage = Err::<(), _>(io::Error::other("x")).context(Usage("failed to read config".into()));
        assert_eq!(Exit::of(&usage.unwrap_err()), Exit::Usage);
    }
}

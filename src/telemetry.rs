//! Logs: one subscriber, to stderr, because stdout belongs to results.
//!
//! Deliberately absent: files and rotation. Whoever starts the process keeps its stderr.

use std::io;

use anstream::{AutoStream, ColorChoice};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How a log line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people, with colours on a terminal.
    #[default]
    Human,
    /// A JSON object a line, for programs.
    Json,
}

/// The variable that replaces the filter, as in `info` or `mainstay=debug,sqlx=info`.
pub const FILTER_VARIABLE: &str = "MAINSTAY_LOG";

/// Starts logging: at verbosity 0 what Mainstay does and what others warn of, above and below it more and less. A
/// filter in `MAINSTAY_LOG` goes before the verbosity. A second call changes nothing.
///
/// # Errors
/// When `MAINSTAY_LOG` is not a filter.
pub fn init(format: LogFormat, verbosity: i8) -> Result<(), ParseError> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(filter) if !filter.trim().is_empty() => EnvFilter::try_new(filter)?,
        _ => EnvFilter::try_new(default_filter(verbosity))?,
    };
    // Asks for a terminal, NO_COLOR, CLICOLOR and TERM.
    let colour = AutoStream::choice(&io::stderr()) != ColorChoice::Never;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour);
    // The only way to fail is that a subscriber is there already, which then stays.
    let _ = match format {
        LogFormat::Human => tracing::subscriber::set_global_default(lines.compact().finish()),
        LogFormat::Json => {
            tracing::subscriber::set_global_default(lines.json().flatten_event(true).with_span_list(false).finish())
        }
    };
    Ok(())
}

/// sqlx logs every statement at debug and slow ones at warn; it stays at warn until everything is wanted.
fn default_filter(verbosity: i8) -> &'static str {
    match verbosity {
        ..=-3 => "off",
        -2 => "error",
        -1 => "warn",
        0 => "warn,mainstay=info",
        1 => "info,sqlx=warn,mainstay=debug",
        2 => "debug,sqlx=warn,mainstay=trace",
        3.. => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verbosity_has_a_filter() {
        for verbosity in i8::MIN..=i8::MAX {
            assert!(EnvFilter::try_new(default_filter(verbosity)).is_ok(), "{verbosity}");
        }
    }
}

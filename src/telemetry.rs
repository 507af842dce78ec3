//! Logs: one subscriber, to stderr, because stdout belongs to results.
//!
//! Always: everything that a command writes to stderr goes through one queue, so that a slow, full or closed stderr neither
//! blocks the command nor makes it fail.
//!
//! Deliberately absent: files and rotation. The process manager keeps the log.

mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::LazyLock;
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use self::queue::LineQueue;

/// How a log line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people, with colours on a terminal.
    #[default]
    Human,
    /// A JSON object a line, for programs.
    Json,
}

/// At exit, a process waits this long for its last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The lines that wait to be written to stderr.
static STDERR: LazyLock<LineQueue> = LazyLock::new(|| {
    let writer = std::thread::Builder::new().name("stderr".into());
    // Without the thread the queue fills up, and further lines are dropped and counted.
    let _ = writer.spawn(|| {
        STDERR.write_to(io::stderr(), |lines| tracing::warn!(lines, "stderr could not be written: lines were dropped"));
    });
    LineQueue::default()
});

/// Writes to stderr, for people: a line, or a prompt without a line end.
pub fn say(text: &str) {
    STDERR.push(text.into());
}

/// Flushes what was queued so far, within a second, so that the queue has room for the last line of a command.
pub fn flush() {
    STDERR.flush(FLUSH_TIMEOUT);
}

/// Flushes what was queued so far when dropped, within a second.
#[derive(Debug)]
pub struct FlushOnDrop;

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        flush();
    }
}

/// Passes a log line to the queue. The subscriber writes each line in one call.
struct LogLine;

impl Write for LogLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        STDERR.push(line.into());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The variable that replaces the filter, as in `info` or `mainstay=debug,sqlx=info`.
pub const FILTER_VARIABLE: &str = "MAINSTAY_LOG";

/// The target of lines that no verbosity hides: what an operator must see.
pub const NOTICE: &str = "mainstay::notice";

/// Starts logging. Verbosity 0 logs what Mainstay does, and warnings of libraries; higher values log more, lower ones less. A
/// filter in `MAINSTAY_LOG` takes precedence over the verbosity; [`NOTICE`] passes both. A second call has no effect.
///
/// # Errors
/// When `MAINSTAY_LOG` is not a filter.
pub fn init(format: LogFormat, verbosity: i8) -> Result<(), ParseError> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(filter) if !filter.trim().is_empty() => EnvFilter::try_new(filter)?,
        _ => EnvFilter::try_new(default_filter(verbosity))?,
    };
    let filter = filter.add_directive(format!("{NOTICE}=info").parse()?);
    // Considers the terminal, NO_COLOR, CLICOLOR and TERM.
    let colour = AutoStream::choice(&io::stderr()) != ColorChoice::Never;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| LogLine).with_ansi(colour);
    // The subscriber would write them to stderr itself, and panic if that is closed.
    let lines = lines.log_internal_errors(false);
    // Fails only if a subscriber is set already, which then stays.
    let _ = match format {
        LogFormat::Human => tracing::subscriber::set_global_default(lines.compact().finish()),
        LogFormat::Json => {
            tracing::subscriber::set_global_default(lines.json().flatten_event(true).with_span_list(false).finish())
        }
    };
    // The default hook writes to stderr itself: a panicking task would block until stderr is read.
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let thread = std::thread::current();
    tracing::error!(thread = thread.name(), backtrace, "{}", panic.to_string().replace('\n', " "));
}

/// sqlx logs every statement at debug and slow ones at warn; it stays at warn below the highest verbosity.
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

//! How a bridge reports to its supervisor why it ended: the last line of its stderr is the message, and its exit code
//! is the class of the failure.
//!
//! Always: a code without a class here is a crash, whichever process exited with it.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use agent_client_protocol::{Error, ErrorCode, is_incoming_transport_closed};

use crate::failure::{self, AgentError, ErrorClass};
use crate::run::ExitReport;

/// The prefix of the last line.
const MARK: &str = "mainstay: ";
/// A longer last line is cut off.
const MAX_CHARS: usize = 500;
/// The error code of an agent that speaks only a newer version of ACP.
const UNSUPPORTED_VERSION: ErrorCode = ErrorCode::new(-32022);
/// The exit codes of classes, in the words of `sysexits.h`: unavailable, protocol, no permission.
const CODES: [(ErrorClass, u8); 3] =
    [(ErrorClass::AgentMissing, 69), (ErrorClass::Protocol, 76), (ErrorClass::Authentication, 77)];

/// The exit code of a shortage: temporary failure.
const SHORTAGE: u8 = 75;

/// Why a bridge ends, and its exit code.
pub(super) struct Ended {
    pub error: AgentError,
    pub code: ExitCode,
}

impl From<AgentError> for Ended {
    fn from(error: AgentError) -> Self {
        let code = CODES.into_iter().find(|(known, _)| Some(*known) == error.class);
        Self { code: code.map_or(ExitCode::FAILURE, |(_, code)| code.into()), error }
    }
}

/// Whether a bridge ended because the system was short of a resource.
pub(in crate::driver::acp) fn is_shortage(exit: &ExitReport) -> bool {
    exit.code == Some(SHORTAGE.into())
}

/// The reason that a bridge gave for ending by itself; none if it was killed before it could.
pub(in crate::driver::acp) fn why_it_ended(exit: &ExitReport) -> Option<AgentError> {
    let code = exit.code?;
    let line = exit.stderr.as_deref()?.lines().rev().find_map(|line| line.strip_prefix(MARK))?;
    let class = CODES.into_iter().find(|(_, known)| code == i32::from(*known)).map(|(class, _)| class);
    Some(AgentError { message: line.to_owned(), class, retry_at: None })
}

/// The last line for its stderr: one line, whatever the agent's words contain.
pub(super) fn last_line(error: &AgentError) -> String {
    let words = error.message.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{MARK}{}", words.chars().take(MAX_CHARS).collect::<String>())
}

/// The agent's program could not be started.
pub(super) fn not_started(command: &[OsString], error: &io::Error) -> Ended {
    let class = if error.kind() == io::ErrorKind::NotFound { ErrorClass::AgentMissing } else { ErrorClass::Crashed };
    let program = command.first().map(|program| program.display());
    let program = program.map(|program| format!("{program}: ")).unwrap_or_default();
    let ended = Ended::from(AgentError::of(class, format!("failed to start the agent: {program}{error}")));
    if failure::is_shortage(error) { Ended { code: SHORTAGE.into(), ..ended } } else { ended }
}

/// `initialize` failed: the agent answered with an error, or with a version of ACP that is not supported; without a
/// class if no answer came.
pub(super) fn refused(error: &Error) -> AgentError {
    if is_incoming_transport_closed(error) {
        return "the agent closed its stdout before it answered initialize".into();
    }
    let class = match error.code {
        ErrorCode::AUTH_REQUIRED => ErrorClass::Authentication,
        ErrorCode::PARSE_ERROR
        | ErrorCode::INVALID_REQUEST
        | ErrorCode::METHOD_NOT_FOUND
        | ErrorCode::INVALID_PARAMS
        | UNSUPPORTED_VERSION => ErrorClass::Protocol,
        // The next attempt may succeed.
        _ => ErrorClass::Crashed,
    };
    let detail = error.data.as_ref().map(|data| data.as_str().map_or_else(|| data.to_string(), str::to_owned));
    let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
    AgentError::of(class, format!("initialize with the agent failed: {}{detail}", error.message))
}

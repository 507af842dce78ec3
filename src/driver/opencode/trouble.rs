//! Errors between a relay and the server.

use std::time::Duration;

use super::server::Failure;
use crate::failure::ErrorClass;

/// The first request about a directory makes the server load its config and plugins.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// Why a turn cannot continue.
pub(super) struct Trouble {
    pub(super) class: Option<ErrorClass>,
    pub(super) message: String,
}

impl Trouble {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { class: None, message: message.into() }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        let class = match &failure {
            Failure::Gone(_) | Failure::Silent(_) | Failure::Broken(_) => Some(ErrorClass::Crashed),
            // The password is wrong, so another program listens at the port.
            Failure::Refused { status: 401, .. } => Some(ErrorClass::Crashed),
            Failure::Refused { .. } => None,
        };
        Self { class, message: format!("opencode: {failure}") }
    }
}

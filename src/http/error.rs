//! The one table from errors to status, code and text.
//!
//! Always: a client gets `{"error":{"code","message"}}`; details that concern only the operator go to the log.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::{EngineError, Refusal, StoreError};
use crate::id::InvalidId;
use crate::message::InvalidMessage;
use crate::options::InvalidOption;

/// The code of the refusal that also closes its connection.
pub(super) const TOO_MANY_CONNECTIONS: &str = "too_many_connections";

/// A request that was not fulfilled.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// For the log, if the client is told less.
    detail: Option<String>,
}

/// Passes the detail along with the response to the log line of the request.
#[derive(Clone)]
pub(super) struct Detail(pub(super) String);

impl Error {
    /// The machine-readable kind of the error.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), detail: None }
    }

    /// 400: the request cannot be parsed.
    pub(super) fn malformed(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 422: the request was parsed, but makes no sense.
    pub(super) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    /// 503: the same request may succeed later.
    pub(super) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// 500: an error that the client cannot fix.
    pub(super) fn internal(detail: impl Into<String>) -> Self {
        let message = "something went wrong here: the log of the daemon says what";
        let detail = Some(detail.into());
        Self { detail, ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message) }
    }

    /// The one shape of errors.
    pub(super) fn body(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.message}})
    }

    /// Seconds after which a retry may succeed.
    fn retry_after(&self) -> Option<&'static str> {
        match self.status {
            // A slot becomes free when a session is closed or has been idle for long.
            StatusCode::TOO_MANY_REQUESTS => Some("10"),
            StatusCode::SERVICE_UNAVAILABLE => Some("2"),
            _ => None,
        }
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        Self::of(&error)
    }
}

impl Error {
    /// Maps an error of the engine to what the client is told.
    pub fn of(error: &EngineError) -> Self {
        let text = error.to_string();
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, text.clone());
        match error {
            // A body names these: the resource of the path exists, the value does not.
            EngineError::NotFound { what: "workspace", .. } => Self::invalid("unknown_workspace", text),
            EngineError::NotFound { what: "agent", .. } => Self::invalid("unknown_agent", text),
            EngineError::NotFound { what: "parent session", .. } => Self::invalid("unknown_parent", text),
            EngineError::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, "not_found", text),
            EngineError::InvalidId(error) => error.clone().into(),
            EngineError::InvalidMessage(error) => error.clone().into(),
            EngineError::InvalidOption(InvalidOption::NotAllowed { .. }) => {
                Self::new(StatusCode::FORBIDDEN, "not_allowed", text)
            }
            EngineError::InvalidOption(_) => Self::invalid("invalid_option", text),
            EngineError::InvalidValue(_) => Self::invalid("invalid_value", text),
            EngineError::Refused(refusal) => match refusal {
                Refusal::Busy(_) => conflict("busy"),
                Refusal::PoolFull(_) => Self::new(StatusCode::TOO_MANY_REQUESTS, "pool_full", text),
                Refusal::QueueFull(_) => Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", text),
                Refusal::Differs { .. } => conflict("session_differs"),
                Refusal::IdTaken(_) => conflict("message_id_taken"),
                Refusal::MessageDiffers(_) => conflict("message_differs"),
            },
            EngineError::SessionDiffers(_) => conflict("session_differs"),
            EngineError::SessionBusy(_) | EngineError::BackendBusy(_) => conflict("busy"),
            EngineError::Decided(_) => conflict("decided"),
            EngineError::NotOffered(_) => Self::invalid("not_offered", text),
            EngineError::CursorAhead { .. } => Self::malformed("cursor_ahead", text),
            EngineError::ShuttingDown => Self::unavailable("shutting_down", text),
            EngineError::Store(StoreError::Closed) => Self::unavailable("shutting_down", text),
            EngineError::Store(StoreError::DiskFull) => Self::unavailable("disk_full", text),
            EngineError::Store(StoreError::DiskFailed(_)) => Self::unavailable("disk_failed", text),
            EngineError::Store(StoreError::OutOfMemory) => Self::unavailable("out_of_memory", text),
            EngineError::Store(StoreError::Gone(_) | StoreError::Hidden { .. }) => {
                Self::unavailable("database_gone", text)
            }
            EngineError::Failed(_) => Self::unavailable("failed", text),
            EngineError::Stalled(_) => Self::unavailable("stalled", text),
            EngineError::Store(error) if error.is_transient() => Self::unavailable("database_busy", text),
            EngineError::Store(_) | EngineError::Identity(_) => Self::internal(text),
        }
    }
}

impl From<InvalidId> for Error {
    fn from(error: InvalidId) -> Self {
        Self::malformed("invalid_id", error.to_string())
    }
}

impl From<InvalidMessage> for Error {
    fn from(error: InvalidMessage) -> Self {
        let code = match error {
            InvalidMessage::NotTaken { .. } => "file_not_taken",
            _ => "invalid_message",
        };
        Self::invalid(code, error.to_string())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if self.code == TOO_MANY_CONNECTIONS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(detail) = self.detail {
            response.extensions_mut().insert(Detail(detail));
        }
        response
    }
}

//! `/api/chat`: what `useChat` of the AI SDK speaks, on the same runs as everything else.
//!
//! Always: the history that the client sends along is not looked at. The conversation is in the database; of the request
//! only the last user message counts, and its id makes a second try the same send.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::App;
use super::error::Error;
use super::extract::{Body, Cursor, Id, Params, parse};
use super::runs::{Wait, cancel_current, nothing_to_cancel, stream_of};
use super::sse;
use crate::engine::{EngineError, Purpose, Refusal, Send, Sent};
use crate::id::{InvalidId, MessageId, SessionId};
use crate::message::{Role, UserMessage};

/// Other fields are the application's own and are left alone.
#[derive(Deserialize)]
#[serde(expecting = "an object with id and messages")]
pub(super) struct Chat {
    id: String,
    messages: Vec<Box<RawValue>>,
    #[serde(default)]
    trigger: Trigger,
    #[serde(rename = "messageId")]
    message_id: Option<String>,
    workspace: Option<String>,
    agent: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Trigger {
    #[default]
    SubmitMessage,
    RegenerateMessage,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with role and parts")]
struct UiMessage {
    id: Option<String>,
    role: Role,
    parts: Vec<Value>,
    metadata: Option<Value>,
}

impl Chat {
    fn into_send(self) -> Result<Send, Error> {
        let unknown = |code| move |error: InvalidId| Error::invalid(code, error.to_string());
        let session: SessionId = self.id.parse()?;
        let workspace = self.workspace.map(|name| name.parse()).transpose().map_err(unknown("unknown_workspace"))?;
        let agent = self.agent.map(|name| name.parse()).transpose().map_err(unknown("unknown_agent"))?;
        let (message, named) = last_message(&self.messages)?;
        let purpose = match self.trigger {
            Trigger::SubmitMessage if named && self.message_id.as_deref() == Some(message.id.as_str()) => Purpose::Edit,
            Trigger::SubmitMessage => Purpose::Send,
            Trigger::RegenerateMessage if named => Purpose::Regenerate,
            Trigger::RegenerateMessage => {
                return Err(Error::invalid("invalid_message", "the message to be answered anew needs its id"));
            }
        };
        Ok(Send { purpose, workspace, agent, ..Send::new(session, message) })
    }
}

/// What the body of `POST /api/chat` asks to be sent.
///
/// # Errors
/// 400 for what is no JSON, 422 for what is no chat, or none whose last message can be sent.
pub fn read_chat(body: &[u8]) -> Result<Send, Error> {
    parse::<Chat>(body)?.into_send()
}

pub(super) async fn send(
    State(app): State<App>,
    Cursor(after): Cursor,
    Body(chat): Body<Chat>,
) -> Result<Response, Error> {
    stream_of(&app, &take(&app, chat.into_send()?).await?, after).await
}

/// `useChat` also names the message when it sends one with an id of the application's own: then there is none to edit.
async fn take(app: &App, send: Send) -> Result<Sent, EngineError> {
    if send.purpose != Purpose::Edit {
        return app.engine.send(send).await;
    }
    match app.engine.send(send.clone()).await {
        Err(EngineError::Refused(Refusal::NoSuchMessage(_))) => {
            app.engine.send(Send { purpose: Purpose::Send, ..send }).await
        }
        sent => sent,
    }
}

/// The last message, and whether the client gave it an id.
fn last_message(messages: &[Box<RawValue>]) -> Result<(UserMessage, bool), Error> {
    let invalid = |message: &str| Error::invalid("invalid_message", message);
    let last = messages.last().ok_or_else(|| invalid("messages is empty: its last one is what is sent"))?;
    let last: UiMessage = serde_json::from_str(last.get())
        .map_err(|error| invalid(&format!("the last of the messages is no UI message: {error}")))?;
    match last.role {
        Role::User => {}
        Role::Assistant => {
            return Err(invalid(
                "the last message is the assistant's: answers to tool approvals cannot be sent this way yet, and to \
                 have it answered anew is the trigger \"regenerate-message\", with the messages up to the user's",
            ));
        }
        Role::System => return Err(invalid("the last message is a system message: only a user's can be sent")),
    }
    let id = last.id.filter(|id| !id.is_empty());
    let named = id.is_some();
    let id = id.map_or_else(|| Ok(MessageId::generate()), |id| id.parse())?;
    Ok((UserMessage::from_parts(id, last.parts, last.metadata)?, named))
}

/// What a page that was just opened asks: is there an answer under way? Its stream, or 204.
pub(super) async fn resume(
    State(app): State<App>,
    Id(session): Id<SessionId>,
    Cursor(after): Cursor,
) -> Result<Response, Error> {
    match app.engine.current_run(&session).await {
        Ok(Some(run)) => Ok(sse::respond(&app, app.engine.follow_run(run.id, after).await?)),
        // A chat is known here from its first message on; the page has it before.
        Ok(None) | Err(EngineError::NotFound { .. }) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn stop(
    State(app): State<App>,
    Id(session): Id<SessionId>,
    Params(wait): Params<Wait>,
) -> Result<Response, Error> {
    match cancel_current(&app, &session, wait.duration()?).await {
        Err(EngineError::NotFound { .. }) => Ok(nothing_to_cancel()),
        answer => Ok(answer?),
    }
}

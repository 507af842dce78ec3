//! `/api/chat`: what `useChat` of the AI SDK speaks, on the same runs as everything else.
//!
//! Always: the conversation is in the database, not in the history that the client sends along ([`body`]). Of the request
//! only the last message counts: a user's is sent, and its id makes a second try the same send; in the assistant's stand
//! answers to what its agent asked. The stream of a run ends where somebody has to answer, and goes on in the answer.

pub(super) mod body;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use self::body::{ChatBody, Last, Trigger, UiMessage};
use super::App;
use super::error::Error;
use super::extract::{Cursor, Id, Params};
use super::runs::{Wait, cancel_current, nothing_to_cancel};
use super::sse;
use crate::engine::{EngineError, Purpose, Refusal, Send, Sent};
use crate::id::{InvalidId, MessageId, PermissionId, SessionId};
use crate::message::UserMessage;
use crate::permission::Answer;

/// What a chat asks for.
#[derive(Debug)]
pub enum ChatRequest {
    /// A message is sent.
    Send(Box<Send>),
    /// What the agent asked is answered.
    Answers(SessionId, Vec<ChatAnswer>),
}

/// One answer of a chat.
#[derive(Debug, Clone)]
pub struct ChatAnswer {
    id: PermissionId,
    approved: bool,
    reason: Option<String>,
}

impl ChatBody {
    fn into_request(self) -> Result<ChatRequest, Error> {
        let unknown = |code| move |error: InvalidId| Error::invalid(code, error.to_string());
        let Self { fields, approvals, last_approvals, last } = self;
        let session: SessionId = fields.id.parse()?;
        let workspace = fields.workspace.map(|name| name.parse()).transpose().map_err(unknown("unknown_workspace"))?;
        let agent = fields.agent.map(|name| name.parse()).transpose().map_err(unknown("unknown_agent"))?;
        let message = match last {
            Last::User(message) => message,
            Last::Assistant if fields.trigger == Trigger::SubmitMessage => {
                let (_, newest) = approvals.split_at(approvals.len().saturating_sub(last_approvals));
                return Ok(ChatRequest::Answers(session, answers(newest)?));
            }
            Last::Assistant => {
                return Err(invalid(
                    "the last message is the assistant's: to have it answered anew, send the messages up to the user's",
                ));
            }
            Last::System => return Err(invalid("the last message is a system message: only a user's can be sent")),
        };
        let (message, named) = message.into_user()?;
        let purpose = match fields.trigger {
            Trigger::SubmitMessage if named && fields.message_id.as_deref() == Some(message.id.as_str()) => {
                Purpose::Edit
            }
            Trigger::SubmitMessage => Purpose::Send,
            Trigger::RegenerateMessage if named => Purpose::Regenerate,
            Trigger::RegenerateMessage => {
                return Err(Error::invalid("invalid_message", "the message to be answered anew needs its id"));
            }
        };
        let send = Send { purpose, workspace, agent, ..Send::new(session, message) };
        Ok(ChatRequest::Send(send.into()))
    }
}

/// What the body of `POST /api/chat` asks for.
///
/// # Errors
/// 400 for what is no JSON, 422 for what is no chat, or none whose last message can be sent or answers anything.
pub fn read_chat(body: &[u8]) -> Result<ChatRequest, Error> {
    ChatBody::parse(Bytes::copy_from_slice(body), body.len())?.into_request()
}

pub(super) async fn send(State(app): State<App>, Cursor(after): Cursor, chat: ChatBody) -> Result<Response, Error> {
    let (run, after) = match chat.into_request()? {
        ChatRequest::Send(send) => {
            let sent = take(&app, *send).await?;
            // A cursor only means something when the client had the beginning before.
            (sent.run.id, if sent.created { 0 } else { after })
        }
        ChatRequest::Answers(session, answers) => {
            let asked: Vec<_> = answers.iter().map(|answer| answer.id).collect();
            let paused = app.engine.paused_at(&session, &asked).await?;
            answer(&app, answers).await?;
            (paused.run, paused.after)
        }
    };
    Ok(sse::respond(&app, app.engine.follow_chat(run, after).await?))
}

/// One that comes too late does not keep the others from being heard.
async fn answer(app: &App, answers: Vec<ChatAnswer>) -> Result<(), EngineError> {
    let mut result = Ok(());
    for ChatAnswer { id, approved, reason } in answers {
        let answered = app.engine.answer_permission(id, Answer::Approved(approved), "chat", reason).await;
        result = result.and(answered.map(drop));
    }
    result
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

fn invalid(message: &str) -> Error {
    Error::invalid("invalid_message", message)
}

impl UiMessage {
    /// The message of a person, and whether the client gave it an id.
    fn into_user(self) -> Result<(UserMessage, bool), Error> {
        let id = self.id.filter(|id| !id.is_empty());
        let named = id.is_some();
        let id = id.map_or_else(|| Ok(MessageId::generate()), |id| id.parse())?;
        Ok((UserMessage::from_parts(id, self.parts, self.metadata)?, named))
    }
}

/// The answers in messages of the assistant.
fn answers(approvals: &[Value]) -> Result<Vec<ChatAnswer>, Error> {
    #[derive(Deserialize)]
    struct Approval {
        id: String,
        approved: bool,
        reason: Option<String>,
    }
    let answers = approvals.iter().map(|approval| {
        let approval = Approval::deserialize(approval)
            .map_err(|error| invalid(&format!("a tool has an approval that is none: {error}")))?;
        let id = approval.id.parse().map_err(|error: InvalidId| invalid(&error.to_string()))?;
        Ok(ChatAnswer { id, approved: approval.approved, reason: approval.reason })
    });
    let answers = answers.collect::<Result<Vec<_>, Error>>()?;
    if answers.is_empty() {
        return Err(invalid(
            "the last message is the assistant's, but none of its tools has the state \"approval-responded\"; to have it \
             answered anew is the trigger \"regenerate-message\", with the messages up to the user's",
        ));
    }
    Ok(answers)
}

/// What a page that was just opened asks: is there an answer under way? Its stream, or 204.
pub(super) async fn resume(
    State(app): State<App>,
    Id(session): Id<SessionId>,
    Cursor(after): Cursor,
) -> Result<Response, Error> {
    match app.engine.current_run(&session).await {
        Ok(Some(run)) => Ok(sse::respond(&app, app.engine.follow_chat(run.id, after).await?)),
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

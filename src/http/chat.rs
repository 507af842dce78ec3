//! `/api/chat`: what `useChat` of the AI SDK speaks, on the same runs as everything else.
//!
//! Always: the conversation is in the database, not in the history that the client sends along ([`body`]). Only the last
//! message of the request counts: a user's message is sent, and its id makes a retry the same send. Answers to agents' questions
//! are read from any message of the assistant. A run's stream ends where a person has to answer, and continues in the response
//! to the answer. An answer is stored before a place for that stream is taken, and so is a message with an id that comes with it.

pub(super) mod body;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use self::body::{ChatBody, Last, Trigger, UiMessage};
use super::App;
use super::decider::Candidate;
use super::error::Error;
use super::extract::{Cursor, Id, Params, with_path};
use super::places::{Crowded, StreamPlace};
use super::runs::{Wait, cancel_current, nothing_to_cancel};
use super::sse;
use crate::engine::{EngineError, GivenAnswer, Purpose, ResumeFrom, SendMessage};
use crate::id::{InvalidId, MessageId, SessionId};
use crate::message::UserMessage;
use crate::permission::Answer;
use crate::run::RunOptions;

/// What a chat request asks for.
#[derive(Debug)]
pub enum ChatRequest {
    /// Send a message.
    Send {
        /// The message.
        send: Box<SendMessage>,
        /// Whether the client named it, so that a retry is the same send.
        is_named: bool,
        /// The answers in the same request. Only those to open questions count.
        answers: Vec<GivenAnswer>,
    },
    /// Answer the agent's questions.
    Answers(SessionId, Vec<GivenAnswer>),
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
                let newest = answers(newest)?;
                // A page may have put the answer into an earlier message.
                let given = if newest.is_empty() { known_answers(&approvals) } else { newest };
                return if given.is_empty() {
                    Err(nothing_answered())
                } else {
                    Ok(ChatRequest::Answers(session, given))
                };
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
        let options = RunOptions { when_busy: fields.when_busy.unwrap_or_default(), ..RunOptions::default() };
        let send = SendMessage { purpose, workspace, agent, options, ..SendMessage::new(session, message) };
        Ok(ChatRequest::Send { send: send.into(), is_named: named, answers: known_answers(&approvals) })
    }
}

/// Parses the body of `POST /api/chat`.
///
/// # Errors
/// 400 for invalid JSON, 422 for JSON that is no chat, or whose last message neither can be sent nor answers anything.
pub fn read_chat(body: &[u8]) -> Result<ChatRequest, Error> {
    ChatBody::parse(Bytes::copy_from_slice(body), body.len())?.into_request()
}

pub(super) async fn send(
    State(app): State<App>,
    candidate: Candidate,
    Cursor(after): Cursor,
    crowded: Option<Extension<Crowded>>,
    chat: ChatBody,
) -> Result<Response, Error> {
    let (place, run, after) = match chat.into_request()? {
        ChatRequest::Send { mut send, is_named, answers } => {
            let is_asking = app.engine.is_asking(&send.session).await?;
            let answers = if is_asking { app.engine.open_answers(&send.session, answers).await? } else { Vec::new() };
            let mut place = match crowded {
                // Answers are stored before the stream is refused.
                _ if !answers.is_empty() => None,
                // A refused message is not sent.
                Some(Extension(crowded)) => return Err(crowded.refuse()),
                None => Some(StreamPlace::take(&app)?),
            };
            // Without a decision a question asked in the meantime stays open, and the message waits for its answer.
            if is_asking {
                match candidate.decide().await {
                    // A request that answers a question and sends a message means the message to follow the answered run.
                    Ok(decider) => {
                        send.goes_next = app.engine.answer_all(answers, decider.name()).await?;
                        send.declined_by = Some(decider.name().to_owned());
                    }
                    // An agent may send, but the questions stay open.
                    Err(_) if answers.is_empty() => {}
                    Err(refused) => return Err(refused),
                }
            }
            // The message that follows is stored before the stream is refused, too, unless a retry would send it a second time.
            if !is_named && place.is_none() {
                place = Some(StreamPlace::take(&app)?);
            }
            let sent = app.engine.send(*send).await?;
            // A cursor means something only if the client had the beginning before.
            (place, sent.run.id, if sent.created { 0 } else { after })
        }
        ChatRequest::Answers(session, answers) => {
            let asked: Vec<_> = answers.iter().map(|answer| answer.id).collect();
            let paused = app.engine.paused_at(&session, &asked).await?;
            answer(&app, answers, candidate.decide().await?.name()).await?;
            (None, paused.run, paused.after)
        }
    };
    let place = place.map_or_else(|| StreamPlace::take(&app), Ok)?;
    Ok(sse::respond(&app, place, app.engine.follow_chat(run, after).await?))
}

/// A question that was decided otherwise, or whose run has ended, is no error of this request: the page that answers gets
/// the rest of the stream, which shows it.
async fn answer(app: &App, answers: Vec<GivenAnswer>, by: &str) -> Result<(), EngineError> {
    let mut result = Ok(());
    for GivenAnswer { id, approved, reason } in answers {
        match app.engine.answer_permission(id, Answer::Approved(approved), by, reason).await {
            Ok(_) | Err(EngineError::Decided(_)) => {}
            // An answer that fails does not keep the others from being stored.
            Err(error) => result = result.and(Err(error)),
        }
    }
    result
}

fn invalid(message: &str) -> Error {
    Error::invalid("invalid_message", message)
}

impl UiMessage {
    /// The user's message, and whether the client gave it an id.
    fn into_user(self) -> Result<(UserMessage, bool), Error> {
        let id = self.id.filter(|id| !id.is_empty());
        let named = id.is_some();
        let id = id.map_or_else(|| Ok(MessageId::generate()), |id| id.parse())?;
        Ok((UserMessage::from_parts(id, self.parts, self.metadata)?, named))
    }
}

/// The answers in the last message.
fn answers(approvals: &[Value]) -> Result<Vec<GivenAnswer>, Error> {
    #[derive(Deserialize)]
    struct Approval {
        id: String,
        approved: bool,
        reason: Option<String>,
    }
    let answers = approvals.iter().map(|approval| {
        let approval: Approval = serde_path_to_error::deserialize(approval)
            .map_err(|error| invalid(&format!("a tool has an approval that is none: {}", with_path(&error))))?;
        let id = approval.id.parse().map_err(|error: InvalidId| invalid(&error.to_string()))?;
        Ok(GivenAnswer { id, approved: approval.approved, reason: approval.reason })
    });
    answers.collect()
}

/// The answers in the history, which may hold some that were not meant for Mainstay.
fn known_answers(approvals: &[Value]) -> Vec<GivenAnswer> {
    approvals.iter().filter_map(|approval| answers(std::slice::from_ref(approval)).ok()).flatten().collect()
}

fn nothing_answered() -> Error {
    invalid(
        "the last message is the assistant's, but no tool has the state \"approval-responded\"; to have it answered anew is \
         the trigger \"regenerate-message\", with the messages up to the user's",
    )
}

/// How much of the chat that it resumes the client has already.
#[derive(Deserialize)]
pub(super) struct Has {
    run: Option<String>,
    message: Option<String>,
}

/// What a page requests that was just opened or was cut off: the stream of a running answer, or the rest of the run that it
/// names; 204 if there is none.
pub(super) async fn resume(
    State(app): State<App>,
    Id(session): Id<SessionId>,
    Cursor(after): Cursor,
    Params(has): Params<Has>,
    place: StreamPlace,
) -> Result<Response, Error> {
    let from = match (has.run, has.message) {
        (Some(run), _) => Some(ResumeFrom::Run(run.parse()?)),
        (None, Some(message)) => Some(ResumeFrom::Message(message.parse()?)),
        (None, None) => None,
    };
    let is_named = from.is_some();
    match app.engine.chat_run(&session, from, after).await {
        Ok(Some(run)) => Ok(sse::respond(&app, place, app.engine.follow_chat(run, after).await?)),
        Ok(None) => Ok(StatusCode::NO_CONTENT.into_response()),
        // A chat exists here from its first message on; the page has it before.
        Err(EngineError::NotFound { .. }) if !is_named => Ok(StatusCode::NO_CONTENT.into_response()),
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

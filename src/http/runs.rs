//! `/v1/runs` and the runs of a session: send, get, list, cancel.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::App;
use super::error::Error;
use super::extract::{Body, Cursor, Id, Params, WantsStream, parse};
use super::page::{Items, Page};
use super::places::StreamPlace;
use super::sse;
use crate::engine::{EngineError, RunFilter, SendMessage, Sent};
use crate::event::Seq;
use crate::id::{MessageId, RunId, SessionId};
use crate::message::UserMessage;
use crate::run::{Run, RunOptions, Status, WhenBusy};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with a message")]
pub(super) struct NewRun {
    message: NewMessage,
    #[serde(default)]
    when_busy: WhenBusy,
    timeout_ms: Option<u64>,
    #[serde(default)]
    priority: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with text or parts")]
struct NewMessage {
    id: Option<String>,
    text: Option<String>,
    parts: Option<Vec<Value>>,
}

impl NewMessage {
    fn check(self) -> Result<UserMessage, Error> {
        let id = self.id.map_or_else(|| Ok(MessageId::generate()), |id| id.parse())?;
        match (self.text, self.parts) {
            (Some(text), None) => Ok(UserMessage::text(id, text)?),
            (None, Some(parts)) => Ok(UserMessage::from_parts(id, parts, None)?),
            _ => Err(Error::invalid("invalid_message", "a message has either text or parts")),
        }
    }
}

impl NewRun {
    fn into_send(self, session: SessionId) -> Result<SendMessage, Error> {
        let options = RunOptions {
            when_busy: self.when_busy,
            timeout: self.timeout_ms.map(Duration::from_millis),
            priority: self.priority,
        };
        Ok(SendMessage { options, ..SendMessage::new(session, self.message.check()?) })
    }
}

/// Parses the body of `POST /v1/sessions/{id}/runs`.
///
/// # Errors
/// 400 for invalid JSON, 422 for JSON that is no message.
pub fn read_new_run(session: SessionId, body: &[u8]) -> Result<SendMessage, Error> {
    parse::<NewRun>(body)?.into_send(session)
}

pub(super) async fn send(
    State(app): State<App>,
    Id(session): Id<SessionId>,
    stream: WantsStream,
    Cursor(after): Cursor,
    Body(body): Body<NewRun>,
) -> Result<Response, Error> {
    let send = body.into_send(session)?;
    // Taken before the send: if there is no place, nothing is sent.
    let place = stream.place(&app)?;
    let sent = app.engine.send(send).await?;
    if let Some(place) = place {
        return stream_of(&app, place, &sent, after).await;
    }
    let status = if sent.created { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(sent.run)).into_response())
}

/// The stream that responds to a send. A cursor means something only if the client had the beginning before.
async fn stream_of(app: &App, place: StreamPlace, sent: &Sent, after: Seq) -> Result<Response, Error> {
    let after = if sent.created { 0 } else { after };
    Ok(sse::respond(app, place, app.engine.follow_run(sent.run.id, after).await?))
}

#[derive(Deserialize)]
pub(super) struct Filter {
    status: Option<String>,
    session: Option<String>,
}

pub(super) async fn list(
    State(app): State<App>,
    Params(page): Params<Page>,
    Params(filter): Params<Filter>,
) -> Result<Json<Items<Run>>, Error> {
    let session = filter.session.as_deref().map(str::parse).transpose()?;
    list_filtered(&app, &page, session, filter.status.as_deref()).await
}

pub(super) async fn list_of_session(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    Params(page): Params<Page>,
    Params(filter): Params<Filter>,
) -> Result<Json<Items<Run>>, Error> {
    // A session without runs has an empty list, but a session that does not exist is an error.
    let session = app.engine.session(&id).await?.id;
    list_filtered(&app, &page, Some(session), filter.status.as_deref()).await
}

async fn list_filtered(
    app: &App,
    page: &Page,
    session: Option<SessionId>,
    status: Option<&str>,
) -> Result<Json<Items<Run>>, Error> {
    let limit = page.limit()?;
    let status = status.map(str::parse::<Status>).transpose();
    let status = status.map_err(|error| Error::malformed("invalid_query", error.to_string()))?;
    let filter = RunFilter { session, status, before: page.cursor()? };
    let rows = app.engine.list_runs(&filter, limit + 1).await?;
    Ok(Json(Items::first(rows, limit, |(cursor, _)| cursor.to_string()).map(|(_, run)| run)))
}

/// A run, and what helps to explain how it went.
#[derive(Serialize)]
pub(super) struct Shown {
    #[serde(flatten)]
    run: Run,
    stderr: Option<String>,
    malformed_sample: Option<String>,
}

pub(super) async fn show(State(app): State<App>, Id(id): Id<RunId>) -> Result<Json<Shown>, Error> {
    let run = app.engine.run(id).await?;
    let (stderr, malformed_sample) = app.engine.run_diagnostics(id).await?;
    Ok(Json(Shown { run, stderr, malformed_sample }))
}

/// Longest time that `?wait=` may ask for.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(300);

/// How long the response may wait for the end of the cancelled run.
#[derive(Deserialize)]
pub(super) struct Wait {
    wait: Option<u64>,
}

impl Wait {
    pub(super) fn duration(&self) -> Result<Option<Duration>, Error> {
        match self.wait.map(Duration::from_secs) {
            Some(wait) if wait > MAX_WAIT => {
                let message = format!("wait may be at most {} seconds", MAX_WAIT.as_secs());
                Err(Error::malformed("invalid_query", message))
            }
            wait => Ok(wait),
        }
    }
}

pub(super) async fn cancel(
    State(app): State<App>,
    Id(id): Id<RunId>,
    Params(wait): Params<Wait>,
) -> Result<Response, Error> {
    let wait = wait.duration()?;
    let (run, was_settled) = app.engine.cancel_run(id).await?;
    let (status, run) = if was_settled { (StatusCode::OK, run) } else { settled(&app, run, wait).await? };
    Ok((status, Json(run)).into_response())
}

/// Cancels the current run of a session. Responds with `{"run"}`: null if there is none.
pub(super) async fn cancel_current(
    app: &App,
    session: &SessionId,
    wait: Option<Duration>,
) -> Result<Response, EngineError> {
    let Some(run) = app.engine.cancel_session(session).await? else { return Ok(nothing_to_cancel()) };
    let (status, run) = settled(app, run, wait).await?;
    Ok((status, Json(json!({"run": run}))).into_response())
}

pub(super) fn nothing_to_cancel() -> Response {
    Json(json!({"run": null})).into_response()
}

/// The run after its end with 200, or as it is with 202 if the time is over or there is no place to wait.
async fn settled(app: &App, run: Run, wait: Option<Duration>) -> Result<(StatusCode, Run), EngineError> {
    let Some(wait) = wait else { return Ok((StatusCode::ACCEPTED, run)) };
    let Ok(_place) = StreamPlace::take(app) else { return Ok((StatusCode::ACCEPTED, run)) };
    let id = run.id;
    tokio::select! {
        run = app.engine.wait_settled(id) => Ok((StatusCode::OK, run?)),
        () = tokio::time::sleep(wait) => Ok((StatusCode::ACCEPTED, app.engine.run(id).await?)),
        () = app.shutdown.cancelled() => Ok((StatusCode::ACCEPTED, run)),
    }
}

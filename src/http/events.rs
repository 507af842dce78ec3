//! The log of a run or a session: as a page, or as a stream that replays and then follows.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::error::Error;
use super::extract::{Cursor, Id, Params, WantsStream};
use super::page::{Items, Page};
use super::{App, sse};
use crate::event::Event;
use crate::id::{RunId, SessionId};

pub(super) async fn of_run(
    State(app): State<App>,
    Id(id): Id<RunId>,
    Cursor(after): Cursor,
    WantsStream(stream): WantsStream,
    Params(page): Params<Page>,
) -> Result<Response, Error> {
    if stream {
        return Ok(sse::respond(&app, app.engine.follow_run(id, after).await?));
    }
    let limit = page.limit()?;
    Ok(answer(app.engine.run_events(id, after, limit + 1).await?, limit))
}

pub(super) async fn of_session(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    Cursor(after): Cursor,
    WantsStream(stream): WantsStream,
    Params(page): Params<Page>,
) -> Result<Response, Error> {
    if stream {
        return Ok(sse::respond(&app, app.engine.follow_session(&id, after).await?));
    }
    let limit = page.limit()?;
    Ok(answer(app.engine.session_events(&id, after, limit + 1).await?, limit))
}

fn answer(events: Vec<Event>, limit: i64) -> Response {
    Json(Items::first(events, limit, |event| event.seq.to_string())).into_response()
}

//! The log of a run or a session: as a page, or as a stream that replays and then follows.

use axum::extract::State;
use axum::response::Response;

use super::error::Error;
use super::extract::{Cursor, Id, Params, WantsStream};
use super::page::{Items, Page};
use super::{App, sse};
use crate::engine::{EngineError, EventPage};
use crate::event::Seq;
use crate::id::{RunId, SessionId};

pub(super) async fn of_run(
    State(app): State<App>,
    Id(id): Id<RunId>,
    Cursor(after): Cursor,
    stream: WantsStream,
    Params(page): Params<Page>,
) -> Result<Response, Error> {
    if let Some(place) = stream.place(&app)? {
        return Ok(sse::respond(&app, place, app.engine.follow_run(id, after).await?));
    }
    answer(&app, app.engine.run_event_page_without_large(id, after, page.limit()?).await?)
}

/// The log of a session that does not exist yet is empty: a page may follow it before the first message is sent.
pub(super) async fn of_session(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    Cursor(after): Cursor,
    stream: WantsStream,
    Params(page): Params<Page>,
) -> Result<Response, Error> {
    if let Some(place) = stream.place(&app)? {
        return match app.engine.follow_session(&id, after).await {
            Err(EngineError::NotFound { .. }) => {
                begins_at(after)?;
                let engine = app.engine.clone();
                Ok(sse::respond_when(&app, place, async move {
                    engine.session_appears(&id).await?;
                    engine.follow_session(&id, 0).await
                }))
            }
            follower => Ok(sse::respond(&app, place, follower?)),
        };
    }
    match app.engine.session_event_page_without_large(&id, after, page.limit()?).await {
        Err(EngineError::NotFound { .. }) => {
            begins_at(after)?;
            answer(&app, EventPage::default())
        }
        page => answer(&app, page?),
    }
}

/// An empty log has no events behind a cursor.
fn begins_at(after: Seq) -> Result<(), EngineError> {
    if after == 0 { Ok(()) } else { Err(EngineError::CursorAhead { after, last_seq: 0 }) }
}

fn answer(app: &App, page: EventPage) -> Result<Response, Error> {
    let next_cursor = page.events.last().filter(|_| page.more).map(|last| last.seq.to_string());
    Items { items: page.events, next_cursor }.respond(app, page.large)
}

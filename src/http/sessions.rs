//! `/v1/sessions`: conversations and their messages.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::App;
use super::answer::JsonPieces;
use super::decider::Candidate;
use super::error::Error;
use super::extract::{Body, Id, OptionalBody, Params};
use super::page::{self, Items, MAX_LIMIT, Page};
use super::runs::{Wait, cancel_current};
use crate::config::Role;
use crate::engine::{CreateSession, EngineError, MessageCursor, MessagePage, MessageRange, PageFrom, SessionCursor};
use crate::id::SessionId;
use crate::session::{Session, SessionMode};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct Create {
    id: Option<String>,
    workspace: Option<String>,
    agent: Option<String>,
    title: Option<String>,
    idle_ttl_ms: Option<u64>,
    mode: Option<SessionMode>,
    options: Option<Map<String, Value>>,
    spawned_by: Option<String>,
    label: Option<String>,
}

pub(super) async fn create(
    State(app): State<App>,
    candidate: Candidate,
    Body(body): Body<Create>,
) -> Result<Response, Error> {
    // Options need the same role as on an existing session.
    if body.options.as_ref().is_some_and(|options| !options.is_empty()) {
        candidate.caller().check(Role::Admin)?;
        candidate.decide().await?;
    }
    let create = CreateSession {
        id: body.id.map(|id| id.parse()).transpose()?,
        workspace: body.workspace.map(|name| name.parse()).transpose()?,
        agent: body.agent.map(|name| name.parse()).transpose()?,
        title: body.title,
        idle_ttl: body.idle_ttl_ms.map(Duration::from_millis),
        mode: body.mode,
        options: body.options,
        spawned_by: body.spawned_by.map(|id| id.parse()).transpose()?,
        label: body.label,
    };
    let (session, new) = app.engine.create_session(create).await?;
    if !new {
        return Ok(Json(session).into_response());
    }
    // The characters of an id need no escaping in a path.
    let location = [(header::LOCATION, format!("/v1/sessions/{}", session.id))];
    Ok((StatusCode::CREATED, location, Json(session)).into_response())
}

pub(super) async fn list(State(app): State<App>, Params(page): Params<Page>) -> Result<Json<Items<Session>>, Error> {
    let limit = page.limit()?;
    let after = page.cursor_pair()?.map(|(updated_at, key)| SessionCursor { updated_at, key });
    let rows = app.engine.list_sessions(after, limit + 1).await?;
    let items = Items::first(rows, limit, |(cursor, _)| page::pair(cursor.updated_at, cursor.key));
    Ok(Json(items.map(|(_, session)| session)))
}

pub(super) async fn show(State(app): State<App>, Id(id): Id<SessionId>) -> Result<Json<Session>, Error> {
    Ok(Json(app.engine.session(&id).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct Update {
    #[serde(default, deserialize_with = "also_null")]
    title: Option<Option<String>>,
    idle_ttl_ms: Option<u64>,
}

/// Tells a field that is null from one that is absent.
fn also_null<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

pub(super) async fn update(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    Body(body): Body<Update>,
) -> Result<Json<Session>, Error> {
    let idle_ttl = body.idle_ttl_ms.map(Duration::from_millis);
    Ok(Json(app.engine.update_session(&id, body.title, idle_ttl).await?))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object")]
pub(super) struct Close {
    cancel: bool,
}

pub(super) async fn close(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    OptionalBody(body): OptionalBody<Close>,
) -> Result<Json<Session>, Error> {
    Ok(Json(app.engine.close_session(&id, body.cancel).await?))
}

pub(super) async fn cancel(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    Params(wait): Params<Wait>,
    Params(below): Params<Below>,
) -> Result<Response, Error> {
    let wait = wait.duration()?;
    if below.children()? {
        app.engine.cancel_descendants(&id).await?;
    }
    Ok(cancel_current(&app, &id, wait).await?)
}

/// Whether the sessions below a session are included.
#[derive(Deserialize)]
pub(super) struct Below {
    children: Option<String>,
}

impl Below {
    fn children(&self) -> Result<bool, Error> {
        flag("children", self.children.as_deref())
    }
}

/// The sessions that work for this one, directly or not.
pub(super) async fn children(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    Params(page): Params<Page>,
) -> Result<Json<Items<Session>>, Error> {
    let limit = page.limit()?;
    let rows = app.engine.list_descendants(&id, page.cursor()?.unwrap_or(0), limit + 1).await?;
    Ok(Json(Items::first(rows, limit, |(cursor, _)| cursor.to_string()).map(|(_, session)| session)))
}

#[derive(Deserialize)]
pub(super) struct MessageParams {
    partial: Option<String>,
    last: Option<i64>,
    before: Option<String>,
    order: Option<Order>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Asc,
    Desc,
}

impl MessageParams {
    /// Which messages are requested. A list is read from its beginning; without a cursor or a limit, the newest are returned.
    fn range(&self, page: &Page) -> Result<MessageRange, Error> {
        let cursor = |(position, key)| MessageCursor { position, key };
        let after = page.cursor_pair()?.map(cursor);
        let before = self.before.as_deref().map(page::read_pair).transpose()?.map(cursor);
        if after.is_some() && (before.is_some() || self.last.is_some()) {
            let message = "cursor reads on from a page; last and before read backwards: use one of them";
            return Err(Error::malformed("invalid_query", message));
        }
        let limit = match self.last {
            Some(last) => page::limit("last", last)?,
            None => page.limit_or(MAX_LIMIT)?,
        };
        let is_plain = page.is_plain() && self.order.is_none();
        let backwards = before.is_some() || self.last.is_some() || self.order == Some(Order::Desc) || is_plain;
        let from = match before.or(after) {
            cursor if backwards => PageFrom::Before(cursor.unwrap_or(MessageCursor::END)),
            cursor => PageFrom::After(cursor.unwrap_or(MessageCursor::START)),
        };
        Ok(MessageRange { from, limit, partial: flag("partial", self.partial.as_deref())? })
    }
}

/// The messages of a session. One that does not exist yet has none: a chat is opened before its first message is sent.
pub(super) async fn messages(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    Params(page): Params<Page>,
    Params(params): Params<MessageParams>,
) -> Result<Response, Error> {
    let page = match app.engine.message_page_without_large(&id, params.range(&page)?).await {
        Err(EngineError::NotFound { .. }) => MessagePage::default(),
        page => page?,
    };
    let text = |cursor: Option<MessageCursor>| cursor.map(|cursor| page::pair(cursor.position, cursor.key));
    let (mut items, older, newer) = (page.messages, text(page.prev), text(page.next));
    let (next_cursor, prev_cursor) = match params.order {
        Some(Order::Desc) => {
            items.reverse();
            (older, newer)
        }
        _ => (newer, older),
    };
    let mut json = JsonPieces::default();
    // The messages that wait in the queue, the next one first.
    json.text("{\"items\":").list(items, page.large)?.text(",\"queued\":").list(page.queued, None)?;
    // Where the next page begins, in the order of these, and where the previous page ends.
    json.text(",\"next_cursor\":").value(&next_cursor)?.text(",\"prev_cursor\":").value(&prev_cursor)?.text("}");
    Ok(json.respond(app.engine.memory().readers()))
}

fn flag(name: &str, value: Option<&str>) -> Result<bool, Error> {
    match value {
        Some("1" | "true") => Ok(true),
        None | Some("0" | "false") => Ok(false),
        Some(_) => Err(Error::malformed("invalid_query", format!("{name} is 1 or 0"))),
    }
}

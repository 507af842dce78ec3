//! `/v1/sessions/{id}/options`, and what else in a session concerns its agent. All answers come from the store: no agent is
//! asked or started, and a change takes effect with the next turn.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::App;
use super::decider::Decider;
use super::error::Error;
use super::extract::{Body, Id, OptionalBody};
use super::page::Items;
use crate::id::SessionId;
use crate::session::{AgentSession, OptionsReport, Session};

type Options = Map<String, Value>;

pub(super) async fn show(State(app): State<App>, Id(id): Id<SessionId>) -> Result<Json<OptionsReport>, Error> {
    Ok(Json(app.engine.session_options(&id).await?))
}

pub(super) async fn replace(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    _: Decider,
    Body(options): Body<Options>,
) -> Result<Json<OptionsReport>, Error> {
    Ok(Json(app.engine.replace_options(&id, options).await?))
}

pub(super) async fn update(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    _: Decider,
    Body(patch): Body<Options>,
) -> Result<Json<OptionsReport>, Error> {
    Ok(Json(app.engine.update_options(&id, patch).await?))
}

pub(super) async fn clear(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    _: Decider,
) -> Result<Json<OptionsReport>, Error> {
    Ok(Json(app.engine.replace_options(&id, Options::new()).await?))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object")]
pub(super) struct Reset {
    options: bool,
}

pub(super) async fn reset(
    State(app): State<App>,
    Id(id): Id<SessionId>,
    _: Decider,
    OptionalBody(body): OptionalBody<Reset>,
) -> Result<Json<Session>, Error> {
    Ok(Json(app.engine.reset_session(&id, body.options).await?))
}

pub(super) async fn agent_sessions(
    State(app): State<App>,
    Id(id): Id<SessionId>,
) -> Result<Json<Items<AgentSession>>, Error> {
    Ok(Json(Items { items: app.engine.list_agent_sessions(&id).await?, next_cursor: None }))
}

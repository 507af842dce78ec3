//! `/v1/backends`: the warm agent processes.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::App;
use super::error::Error;
use super::extract::{Id, OptionalBody, Params};
use super::page::{Items, Page};
use crate::backend::Backend;
use crate::id::BackendId;

pub(super) async fn list(State(app): State<App>, Params(page): Params<Page>) -> Result<Json<Items<Backend>>, Error> {
    Ok(Json(Items::of(app.engine.list_backends().await?, &page)?))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "an object")]
pub(super) struct Stop {
    /// Also stop a backend that is executing a turn: it ends once no turn is left.
    force: bool,
}

pub(super) async fn stop(
    State(app): State<App>,
    Id(id): Id<BackendId>,
    OptionalBody(body): OptionalBody<Stop>,
) -> Result<Json<Backend>, Error> {
    Ok(Json(app.engine.stop_backend(id, body.force).await?))
}

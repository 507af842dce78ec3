//! `/v1/permissions`: the questions that agents ask before they use a tool, and answering them.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

use super::App;
use super::decider::Decider;
use super::error::Error;
use super::extract::{Body, Id, Params};
use super::page::{Items, Page};
use crate::engine::PermissionFilter;
use crate::id::PermissionId;
use crate::permission::{Answer, Permission, PermissionState};

#[derive(Deserialize)]
pub(super) struct Filter {
    state: Option<String>,
    session: Option<String>,
    run: Option<String>,
}

pub(super) async fn list(
    State(app): State<App>,
    Params(page): Params<Page>,
    Params(filter): Params<Filter>,
) -> Result<Response, Error> {
    let state = filter.state.as_deref().map(str::parse::<PermissionState>).transpose();
    let filter = PermissionFilter {
        state: state.map_err(|error| Error::malformed("invalid_query", error.to_string()))?,
        session: filter.session.as_deref().map(str::parse).transpose()?,
        run: filter.run.as_deref().map(str::parse).transpose()?,
        before: page.cursor()?,
    };
    let page = app.engine.permission_page(&filter, page.limit()?).await?;
    let next_cursor = page.permissions.last().filter(|_| page.more).map(|(cursor, _)| cursor.to_string());
    Items { items: page.permissions, next_cursor }.map(|(_, permission)| permission).respond(&app, None)
}

pub(super) async fn show(State(app): State<App>, Id(id): Id<PermissionId>) -> Result<Json<Permission>, Error> {
    Ok(Json(app.engine.permission(id).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with option or approved")]
pub(super) struct NewAnswer {
    option: Option<String>,
    approved: Option<bool>,
    reason: Option<String>,
}

impl NewAnswer {
    fn answer(&self) -> Result<Answer, Error> {
        match (&self.option, self.approved) {
            (Some(option), None) => Ok(Answer::Option(option.clone())),
            (None, Some(approved)) => Ok(Answer::Approved(approved)),
            _ => Err(Error::invalid("invalid_answer", "an answer has either option or approved")),
        }
    }
}

pub(super) async fn answer(
    State(app): State<App>,
    Id(id): Id<PermissionId>,
    decider: Decider,
    Body(given): Body<NewAnswer>,
) -> Result<Json<Permission>, Error> {
    Ok(Json(app.engine.answer_permission(id, given.answer()?, decider.name(), given.reason.clone()).await?))
}

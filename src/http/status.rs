//! How the engine is: slots, workers, and the two questions that supervisors ask.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;
use super::error::Error;
use super::page::Items;
use crate::engine::EngineError;
use crate::slot::Slot;
use crate::worker::Worker;

/// The one route that needs no token.
pub(super) const HEALTH: &str = "/healthz";

pub(super) async fn slots(State(app): State<App>) -> Result<Json<Items<Slot>>, Error> {
    Ok(Json(Items::all(app.engine.list_slots().await?)))
}

pub(super) async fn workers(State(app): State<App>) -> Result<Json<Items<Worker>>, Error> {
    Ok(Json(Items::all(app.engine.list_workers().await?)))
}

/// The process is up and answers.
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// A message would be taken now.
pub(super) async fn ready(State(app): State<App>) -> Result<Json<Value>, Error> {
    if app.shutdown.is_cancelled() {
        return Err(EngineError::ShuttingDown.into());
    }
    match app.engine.check_ready().await {
        Ok(()) => Ok(Json(json!({"status": "ready"}))),
        // Whatever it is: whoever asks shall send nothing here for now.
        Err(error) => Err(Error::unavailable("not_ready", error.to_string())),
    }
}

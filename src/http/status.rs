//! The state of the engine: agents, slots, workers, metrics, and the two health checks of supervisors.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::error::Error;
use super::extract::Params;
use super::page::{Items, Page};
use crate::catalogue::AgentReport;
use crate::engine::EngineError;
use crate::slot::Slot;
use crate::stats::Stats;
use crate::worker::Worker;

pub(super) async fn slots(State(app): State<App>, Params(page): Params<Page>) -> Result<Json<Items<Slot>>, Error> {
    Ok(Json(Items::of(app.engine.list_slots().await?, &page)?))
}

pub(super) async fn agents(
    State(app): State<App>,
    Params(page): Params<Page>,
) -> Result<Json<Items<AgentReport>>, Error> {
    Ok(Json(Items::of(app.engine.list_agents().await?, &page)?))
}

pub(super) async fn workers(State(app): State<App>, Params(page): Params<Page>) -> Result<Json<Items<Worker>>, Error> {
    Ok(Json(Items::of(app.engine.list_workers().await?, &page)?))
}

/// The default time window of the statistics: a day.
const WINDOW: Duration = Duration::from_secs(24 * 3600);

/// The longest window: a year.
const MAX_WINDOW: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Deserialize)]
pub(super) struct StatsParams {
    window_seconds: Option<u64>,
}

pub(super) async fn stats(State(app): State<App>, Params(params): Params<StatsParams>) -> Result<Json<Stats>, Error> {
    let window = params.window_seconds.map_or(WINDOW, Duration::from_secs);
    if !(Duration::from_secs(1)..=MAX_WINDOW).contains(&window) {
        let message = format!("window_seconds must be between 1 and {}", MAX_WINDOW.as_secs());
        return Err(Error::invalid("invalid_value", message));
    }
    Ok(Json(app.engine.stats(window).await?))
}

/// Counters and gauges in the format of Prometheus.
pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, open_metrics)], app.engine.metrics().await)
}

/// Liveness: the process is up and responds.
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Readiness: a message would be accepted and executed now.
pub(super) async fn ready(State(app): State<App>) -> Result<Json<Value>, Error> {
    if app.shutdown.is_cancelled() {
        return Err(EngineError::ShuttingDown.into());
    }
    let Err(error) = app.engine.check_ready().await else { return Ok(Json(json!({"status": "ready"}))) };
    let text = error.to_string();
    match Error::from(error) {
        known if known.status() == StatusCode::SERVICE_UNAVAILABLE => Err(known),
        // In any other case, too, the caller should send nothing here for now.
        _ => Err(Error::unavailable("not_ready", text)),
    }
}

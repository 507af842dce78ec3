//! The HTTP surface: the router, and what its handlers share. One file per resource; `serve.rs` owns the sockets.
//!
//! Always: a request passes `observe` (id, log line), `guard` (Host, Origin) and `auth` (token) before any handler sees it,
//! whatever its path, and one of `/v1` also `query` (names of parameters); every answer that is no success has the shape of
//! `error::Error`.
//! Deliberately absent: state. What a handler knows comes from the engine, which has it from the database.

mod auth;
mod backends;
mod chat;
mod error;
mod events;
mod extract;
mod guard;
mod observe;
mod options;
mod page;
mod permissions;
mod query;
mod runs;
mod serve;
mod sessions;
mod skim;
mod sse;
mod status;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::config::ServerConfig;
use crate::engine::Engine;

pub use chat::{ChatRequest, read_chat};
pub use error::Error;
pub use extract::read_cursor;
pub use runs::read_new_run;
pub use serve::{serve, serve_with};

/// How long the surface waits for what.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For the head of the first request, from the connect.
    pub header: Duration,
    /// For the head of a further request, from the end of the one before: how long an idle connection is kept.
    pub idle: Duration,
    /// For the body of a request.
    pub body: Duration,
    /// For a handler, to the head of its answer; `?wait=` comes on top.
    pub handler: Duration,
    /// Silence on a stream after which a comment is sent, so that proxies and clients see it alive.
    pub keep_alive: Duration,
    /// For connections to end by themselves once the server is asked to stop.
    pub shutdown: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            // Longer than a proxy keeps it (nginx: 60 s, HAProxy and ALB: 60 s, some: 75 s), which would otherwise send a
            // request into a connection that is just being closed.
            idle: Duration::from_secs(90),
            body: Duration::from_secs(30),
            handler: Duration::from_secs(60),
            keep_alive: Duration::from_secs(15),
            shutdown: Duration::from_secs(5),
        }
    }
}

/// What the handlers share.
struct Shared {
    engine: Engine,
    guard: guard::Guard,
    auth: auth::Auth,
    timeouts: Timeouts,
    max_body_bytes: usize,
    /// The server is asked to stop: streams and waits end.
    shutdown: CancellationToken,
}

type App = Arc<Shared>;

impl Shared {
    fn new(
        engine: Engine,
        config: &ServerConfig,
        listen: IpAddr,
        timeouts: Timeouts,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            engine,
            guard: guard::Guard::new(config, listen),
            auth: auth::Auth::new(config),
            timeouts,
            max_body_bytes: config.max_body_bytes,
            shutdown,
        }
    }
}

fn router(app: App) -> Router {
    let handler = app.timeouts.handler;
    let answering = Router::new()
        .route("/v1/sessions", get(sessions::list).post(sessions::create))
        .route("/v1/sessions/{id}", get(sessions::show).patch(sessions::update))
        .route("/v1/sessions/{id}/close", post(sessions::close))
        .route("/v1/sessions/{id}/reset", post(options::reset))
        .route("/v1/sessions/{id}/agent-sessions", get(options::agent_sessions))
        .route("/v1/sessions/{id}/children", get(sessions::children))
        .route(
            "/v1/sessions/{id}/options",
            get(options::show).put(options::replace).patch(options::update).delete(options::clear),
        )
        .route("/v1/sessions/{id}/messages", get(sessions::messages))
        .route("/v1/sessions/{id}/runs", get(runs::list_of_session).post(runs::send))
        .route("/v1/sessions/{id}/events", get(events::of_session))
        .route("/v1/runs", get(runs::list))
        .route("/v1/runs/{id}", get(runs::show))
        .route("/v1/runs/{id}/events", get(events::of_run))
        .route("/v1/permissions", get(permissions::list))
        .route("/v1/permissions/{id}", get(permissions::show).post(permissions::answer))
        .route("/v1/backends", get(backends::list))
        .route("/v1/backends/{id}/stop", post(backends::stop))
        .route("/v1/slots", get(status::slots))
        .route("/v1/workers", get(status::workers))
        .route("/v1/agents", get(status::agents))
        .route("/v1/stats", get(status::stats))
        .route("/api/chat/{id}/stream", get(chat::resume))
        .route(status::HEALTH, get(status::health))
        .route("/readyz", get(status::ready))
        .route("/metrics", get(status::metrics))
        .layer(from_fn_with_state(handler, observe::bound));
    let waiting = Router::new()
        .route("/v1/runs/{id}/cancel", post(runs::cancel))
        .route("/v1/sessions/{id}/cancel", post(sessions::cancel))
        .route("/api/chat/{id}/stop", post(chat::stop))
        .layer(from_fn_with_state(handler + runs::MAX_WAIT, observe::bound));
    // A history that is read to its end takes as long as its parts.
    let chatting = Router::new()
        .route("/api/chat", post(chat::send))
        .layer(from_fn_with_state(handler + chat::body::max_arrival(&app), observe::bound));
    answering
        .merge(waiting)
        .merge(chatting)
        .fallback(|| async { Error::new(StatusCode::NOT_FOUND, "unknown_route", "there is no such route") })
        .method_not_allowed_fallback(|| async {
            Error::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route has other methods: see Allow")
        })
        .layer(from_fn(query::admit))
        .layer(DefaultBodyLimit::max(app.max_body_bytes))
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn_with_state(app.clone(), guard::admit))
        .layer(from_fn(observe::observe))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// The limits in `docs/http.md`, against those that hold.
    #[test]
    fn documented_limits_are_those_that_hold() {
        const DOCS: &str = include_str!("../../docs/http.md");
        let Timeouts { header, body, handler, keep_alive, .. } = Timeouts::default();
        let config = Config::builtin(std::path::Path::new("/"));
        for told in [
            format!("`limit` (1–{}, default {}", page::MAX_LIMIT, page::DEFAULT_LIMIT),
            format!("`?wait=SECONDS` (up to {})", runs::MAX_WAIT.as_secs()),
            format!("{} s for the head of a request", header.as_secs()),
            format!("{} s for its body", body.as_secs()),
            format!("{} s for the head of the answer", handler.as_secs()),
            format!("after {} s of silence", keep_alive.as_secs()),
            format!("`max_body_bytes`, {} MiB", config.server.max_body_bytes / (1024 * 1024)),
            format!("up to {} MiB", chat::body::MAX_BODY_BYTES / (1024 * 1024)),
        ] {
            assert!(DOCS.replace('\n', " ").replace("  ", " ").contains(&told), "docs/http.md does not say: {told}");
        }
    }
}

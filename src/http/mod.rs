//! The HTTP surface: the router, and what its handlers share. One file per resource; `serve.rs` owns the sockets.
//!
//! Always: a request passes `observe` (id, headers, log line), `guard` (Host, Origin) and `auth` (token, role) before any
//! handler sees it, whatever its path, and one of `/v1` also `query` (names of parameters); every response that is no success has
//! the shape of `error::Error`.
//! Deliberately absent: state. Handlers get what they know from the engine, which has it from the database.

mod answer;
mod auth;
mod backends;
mod chat;
mod decider;
mod error;
mod events;
mod extract;
mod guard;
mod memory;
mod observe;
mod options;
mod page;
mod permissions;
mod places;
mod query;
mod roles;
mod runs;
mod serve;
mod sessions;
mod skim;
mod socket;
mod sse;
mod status;
pub mod token_file;
mod unacknowledged;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::config::ServerConfig;
use crate::engine::Engine;

pub use auth::{Access, Credential, Secret};
pub use chat::{ChatRequest, read_chat};
pub use error::Error;
pub use extract::read_cursor;
pub use runs::read_new_run;
pub use serve::{serve, serve_with};

use roles::{ADMIN, Need, OPERATOR, Routes, Urgency, VIEWER};

/// Time limits of the HTTP server.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For the head of the first request, from the connect.
    pub header: Duration,
    /// For the head of a further request, from the end of the previous one: how long an idle connection is kept.
    pub idle: Duration,
    /// For the body of a request.
    pub body: Duration,
    /// For a handler, until the head of its response; `?wait=` is added to it.
    pub handler: Duration,
    /// Silence on a stream after which a comment is sent, so that proxies and clients see that it is alive.
    pub keep_alive: Duration,
    /// For a client that reads nothing of its response; then its connection is reset, and a follower reconnects with its cursor.
    pub stall: Duration,
    /// For connections to end by themselves after the server was asked to stop.
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
            // Longer than a phone is offline while it changes networks.
            stall: Duration::from_secs(30),
            shutdown: Duration::from_secs(5),
        }
    }
}

/// State that the handlers share.
struct Shared {
    engine: Engine,
    guard: guard::Guard,
    auth: auth::Auth,
    places: Arc<places::Places>,
    timeouts: Timeouts,
    max_body_bytes: usize,
    /// The server was asked to stop: streams and waits end.
    shutdown: CancellationToken,
}

type App = Arc<Shared>;

impl Shared {
    fn new(
        engine: Engine,
        config: &ServerConfig,
        access: Access,
        listen: IpAddr,
        timeouts: Timeouts,
        places: Arc<places::Places>,
        shutdown: CancellationToken,
    ) -> Self {
        let auth = auth::Auth::new(access);
        Self {
            engine,
            guard: guard::Guard::new(config, listen, auth.needs_token()),
            auth,
            places,
            timeouts,
            max_body_bytes: config.max_body_bytes,
            shutdown,
        }
    }
}

/// Every route, with the role that it requires.
fn routes(timeouts: &Timeouts, chat_arrival: Duration) -> Routes {
    let handler = timeouts.handler;
    let answering = Routes::default()
        .get("/v1/sessions", VIEWER, sessions::list)
        .post("/v1/sessions", OPERATOR, sessions::create)
        .get("/v1/sessions/{id}", VIEWER, sessions::show)
        .patch("/v1/sessions/{id}", OPERATOR, sessions::update)
        .post("/v1/sessions/{id}/reset", ADMIN, options::reset)
        .get("/v1/sessions/{id}/agent-sessions", VIEWER, options::agent_sessions)
        .get("/v1/sessions/{id}/children", VIEWER, sessions::children)
        .get("/v1/sessions/{id}/options", VIEWER, options::show)
        .put("/v1/sessions/{id}/options", ADMIN, options::replace)
        .patch("/v1/sessions/{id}/options", ADMIN, options::update)
        .delete("/v1/sessions/{id}/options", ADMIN, options::clear)
        .get("/v1/sessions/{id}/messages", VIEWER, sessions::messages)
        .get("/v1/sessions/{id}/runs", VIEWER, runs::list_of_session)
        .post("/v1/sessions/{id}/runs", OPERATOR, runs::send)
        .get("/v1/sessions/{id}/events", VIEWER, events::of_session)
        .get("/v1/runs", VIEWER, runs::list)
        .get("/v1/runs/{id}", VIEWER, runs::show)
        .get("/v1/runs/{id}/events", VIEWER, events::of_run)
        .get("/v1/permissions", VIEWER, permissions::list)
        .get("/v1/backends", VIEWER, backends::list)
        .get("/v1/slots", VIEWER, status::slots)
        .get("/v1/workers", VIEWER, status::workers)
        .get("/v1/agents", VIEWER, status::agents)
        .get("/v1/stats", VIEWER, status::stats)
        .get("/api/chat/{id}/stream", VIEWER, chat::resume)
        .within(handler);
    // What supervisors request, and what ends or unblocks a run, is served even when there is no place for other requests.
    let urgent = Routes::default()
        .post("/v1/sessions/{id}/close", OPERATOR, sessions::close)
        .get("/v1/permissions/{id}", VIEWER, permissions::show)
        .post("/v1/permissions/{id}", OPERATOR, permissions::answer)
        .post("/v1/backends/{id}/stop", ADMIN, backends::stop)
        .get("/healthz", Need::Nothing, status::health)
        .get("/readyz", Need::Nothing, status::ready)
        .get("/metrics", VIEWER, status::metrics)
        .within(handler);
    let waiting = Routes::default()
        .post("/v1/runs/{id}/cancel", OPERATOR, runs::cancel)
        .post("/v1/sessions/{id}/cancel", OPERATOR, sessions::cancel)
        .post("/api/chat/{id}/stop", OPERATOR, chat::stop)
        .within(handler + runs::MAX_WAIT);
    // The history is read to its end, which takes as long as its parts may.
    let chatting = Routes::default().post("/api/chat", OPERATOR, chat::send).within(handler + chat_arrival);
    let urgent = urgent.merge(waiting).that_are(Urgency::Urgent);
    answering.merge(urgent).merge(chatting.that_are(Urgency::ByBody))
}

fn router(app: App) -> Router {
    let (router, needs) = routes(&app.timeouts, chat::body::max_arrival(&app)).into_parts();
    let needs = Arc::new(needs);
    router
        .fallback(|| async { Error::new(StatusCode::NOT_FOUND, "unknown_route", "there is no such route") })
        .method_not_allowed_fallback(|| async {
            Error::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route has other methods: see Allow")
        })
        .layer(from_fn_with_state((app.clone(), needs.clone()), memory::admit))
        // Before the request waits for memory.
        .layer(from_fn_with_state(needs.clone(), places::admit))
        .layer(from_fn(query::admit))
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn_with_state((app.clone(), needs), guard::admit))
        .layer(from_fn(observe::observe))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, reserved_connections};

    /// The roles in `docs/http.md` are those in the code.
    #[test]
    fn documented_roles_are_those_that_hold() {
        let docs = include_str!("../../docs/http.md").split("## Who may").nth(1).unwrap();
        let (_, needs) = routes(&Timeouts::default(), Duration::ZERO).into_parts();
        let told = needs.told();
        assert!(told.len() > 30);
        for role in ["none", "viewer", "operator", "admin"] {
            let cell = if role == "none" { "| none |".to_owned() } else { format!("| `{role}` |") };
            let row = docs.lines().find(|line| line.trim_start().starts_with(&cell)).unwrap();
            let mut written: Vec<_> = row.split('`').filter(|word| word.contains(" /")).collect();
            let mut held: Vec<_> = told.iter().filter(|(_, _, needed)| needed == role).collect();
            if role == "viewer" {
                assert!(held.iter().all(|(method, _, _)| method == "GET") && row.contains("every other `GET`"));
                continue;
            }
            // With options for a new session the same route needs another role: `sessions::create`.
            written.retain(|route| role != "admin" || *route != "POST /v1/sessions");
            written.sort_unstable();
            held.sort_unstable();
            let held: Vec<_> = held.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
            assert_eq!(written, held, "{role}");
        }
    }

    /// The limits in `docs/http.md` are those in the code.
    #[test]
    fn documented_limits_are_those_that_hold() {
        const DOCS: &str = include_str!("../../docs/http.md");
        let Timeouts { header, body, handler, keep_alive, stall, .. } = Timeouts::default();
        let config = Config::builtin(std::path::Path::new("/"));
        for told in [
            format!("`limit` (1–{}, default {}", page::MAX_LIMIT, page::DEFAULT_LIMIT),
            format!("`?wait=SECONDS` (up to {})", runs::MAX_WAIT.as_secs()),
            format!("{} s for the head of a request", header.as_secs()),
            format!("{} s for its body", body.as_secs()),
            format!("{} s for the head of the answer", handler.as_secs()),
            format!("after {} s of silence", keep_alive.as_secs()),
            format!("takes nothing of its answer for {} s", stall.as_secs()),
            format!("Up to {} further connections", reserved_connections(usize::MAX)),
            format!("503 `memory_limit` after {} s", memory::MEMORY_TIMEOUT.as_secs()),
            format!("a head has more than {} KiB", serve::BUFFER_BYTES / 1024),
            format!("`max_body_bytes`, {} MiB", config.server.max_body_bytes / (1024 * 1024)),
            format!("up to {} MiB", chat::body::MAX_BODY_BYTES / (1024 * 1024)),
            format!("{} KiB where a request is urgent", memory::URGENT_BODY_BYTES / 1024),
        ] {
            assert!(DOCS.replace('\n', " ").replace("  ", " ").contains(&told), "docs/http.md does not say: {told}");
        }
    }
}

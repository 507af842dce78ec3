//! The share of the readers' memory that requests and responses take: a large request, or one for a large response, waits until
//! there is room, and is refused if there is none soon.
//!
//! Always: memory is reserved before the body is requested and before the page is read, and released when the response is sent.
//! Small requests reserve nothing; one that does not announce its length counts as the largest allowed. On urgent routes that is
//! little, so that a request that ends or unblocks a run does not wait for the memory of a large message.
//! Proof: `tests/http/places.rs`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::answer::{Holding, InMemory};
use super::error::Error;
use super::extract::{BodyLimit, wants_stream};
use super::roles::{Needs, Urgency};
use crate::metrics::METRICS;

/// A body or a response up to this size is not counted.
const FREE_BYTES: usize = 16 * 1024;
/// Longest body of an urgent request: an answer with a reason of 4000 characters, all escaped, takes 24 KB.
pub(super) const URGENT_BODY_BYTES: usize = 64 * 1024;
/// A body takes memory for its text and for what is parsed from it.
const TIMES_A_BODY: usize = 2;
/// A page takes its rows, then its text: up to 4 MiB each, and for messages as much again for the queued ones.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// How long a request waits for memory.
pub(super) const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the response may be a large page.
fn is_page(request: &Request) -> bool {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    *request.method() == Method::GET
        && match route {
            "/v1/sessions/{id}/messages" | "/v1/permissions" => true,
            "/v1/sessions/{id}/events" | "/v1/runs/{id}/events" => !wants_stream(request.headers()),
            _ => false,
        }
}

/// How much memory a request reserves.
fn bytes_of(request: &Request, max_body_bytes: usize) -> usize {
    let hint = request.body().size_hint();
    let announced = usize::try_from(hint.upper().unwrap_or(u64::MAX)).unwrap_or(usize::MAX).min(max_body_bytes);
    let body = if announced > FREE_BYTES { announced.saturating_mul(TIMES_A_BODY) } else { 0 };
    body.saturating_add(if is_page(request) { PAGE_BYTES } else { 0 })
}

/// Passes a request on when there is memory for it.
pub(super) async fn admit(State((app, needs)): State<(App, Arc<Needs>)>, mut request: Request, next: Next) -> Response {
    let limit = match needs.urgency(&request) {
        Some(Urgency::Urgent) => app.max_body_bytes.min(URGENT_BODY_BYTES),
        _ => app.max_body_bytes,
    };
    DefaultBodyLimit::max(limit).apply(&mut request);
    request.extensions_mut().insert(BodyLimit(limit));
    let bytes = bytes_of(&request, limit);
    if bytes == 0 {
        return next.run(request).await;
    }
    let readers = app.engine.memory().readers();
    let Ok(permit) = tokio::time::timeout(MEMORY_TIMEOUT, readers.acquire(bytes)).await else {
        METRICS.requests_without_memory.inc();
        let message = "what is in flight takes all the memory that it may: try again soon, or raise memory_limit";
        return Error::unavailable("memory_limit", message).into_response();
    };
    let is_page = is_page(&request);
    let response = next.run(request).await;
    let sent = response.extensions().get::<InMemory>().map_or(0, |InMemory(bytes)| *bytes);
    if !is_page || sent <= FREE_BYTES {
        return response;
    }
    // From here on, only what is left to be sent.
    let permit = permit.shrink_to(sent);
    response.map(|body| Body::new(Holding { body, _holds: permit }))
}

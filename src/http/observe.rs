//! What surrounds every request: its id, its log line, its time limit, and the handling of panics.
//!
//! Always: of the URI only the matched route is logged. The rest comes from the client: ids, and perhaps a token in the query.
//! Every response tells browsers not to render, execute or store it, unless its route says otherwise.

use std::any::Any;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::error::{Detail, Error};

/// Identifies a request in the daemon's logs and in those of proxies and clients.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is accepted from a client.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// What an agent or a client said is returned as data only: no type is sniffed, nothing in it is loaded, no page frames it.
const PROTECTION: [(HeaderName, HeaderValue); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

fn protect(headers: &mut HeaderMap) {
    for (name, value) in PROTECTION {
        headers.entry(name).or_insert(value);
    }
}

/// Gives the request an id, and logs it in one line.
pub(super) async fn observe(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(&request);
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id.clone());
    protect(response.headers_mut());

    let path = path.as_ref().map_or("(unmatched)", MatchedPath::as_str);
    let (status, request_id) = (response.status().as_u16(), id.to_str().unwrap_or_default());
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match response.extensions_mut().remove::<Detail>() {
        Some(Detail(error)) => {
            tracing::error!(%method, path, status, duration_ms, request.id = request_id, error, "request failed");
        }
        None if response.status().is_server_error() => {
            tracing::info!(%method, path, status, duration_ms, request.id = request_id, "request turned away");
        }
        None => tracing::debug!(%method, path, status, duration_ms, request.id = request_id, "request"),
    }
    response
}

fn request_id(request: &Request) -> HeaderValue {
    let plain = |id: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    request.headers().get(REQUEST_ID).filter(plain).cloned().unwrap_or_else(new_request_id)
}

fn new_request_id() -> HeaderValue {
    // A UUID is always a valid header value.
    HeaderValue::try_from(Uuid::now_v7().to_string()).unwrap_or(HeaderValue::from_static("-"))
}

/// The whole response to bytes that are no request, for which hyper has this status. It ends the connection.
pub(super) fn unreadable(status: StatusCode) -> String {
    let (code, message) = match status {
        StatusCode::URI_TOO_LONG => ("uri_too_long", "the target of the request is too long"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ("head_too_large", "the head of the request is too large"),
        _ => ("malformed_request", "this is no request of HTTP/1.1: its first line or its headers cannot be read"),
    };
    let body = Error::new(status, code, message).body().to_string();
    let (id, mut headers) = (new_request_id(), HeaderMap::new());
    tracing::debug!(status = status.as_u16(), request.id = id.to_str().unwrap_or_default(), "request unreadable");
    protect(&mut headers);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(REQUEST_ID, id);
    let lines = headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
    format!("HTTP/1.1 {status}\r\n{}\r\n{body}", lines.collect::<String>())
}

/// Times out a request whose response does not begin in time. A stream begins at once and may then continue for ever.
pub(super) async fn bound(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = "this took too long, and may still happen: ask again, with the same ids";
            Error::unavailable("timed_out", message).into_response()
        }
    }
}

/// The response of a handler that panicked. The panic hook has reported the panic itself.
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::internal(format!("a handler panicked: {}", text.unwrap_or("with no text"))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::middleware::{from_fn, from_fn_with_state};
    use axum::routing::get;
    use tower::ServiceExt;
    use tower_http::catch_panic::CatchPanicLayer;

    async fn answer(path: &str) -> Response {
        async fn panics() {
            panic!("on purpose");
        }
        let router = Router::new()
            .route("/panics", get(panics))
            .route("/hangs", get(std::future::pending::<()>))
            .layer(from_fn_with_state(Duration::from_millis(1), bound))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn(observe));
        let Ok(response) = router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await;
        response
    }

    #[tokio::test]
    async fn a_panic_costs_one_request_and_is_not_shown() {
        let response = answer("/panics").await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.headers().contains_key(REQUEST_ID));
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains("internal") && !body.contains("on purpose"), "{body}");
    }

    #[tokio::test]
    async fn a_handler_that_hangs_is_given_up() {
        let response = answer("/hangs").await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key("retry-after"));
    }
}

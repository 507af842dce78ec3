//! The query parameters that each route accepts: a misspelt one is refused, as is a misspelt field of a body.
//!
//! Always: every route below `/v1` accepts the parameters named here and no others. The routes that third-party clients
//! (`/api`) and supervisors request are not checked.

use axum::extract::{MatchedPath, Query, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::Error;

/// How much of an unknown name is shown.
const SHOWN_CHARS: usize = 64;

/// The parameters that a route accepts.
fn names(method: &Method, route: &str) -> &'static [&'static str] {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match route {
        "/v1/sessions" | "/v1/sessions/{id}/children" | "/v1/backends" | "/v1/slots" | "/v1/workers" | "/v1/agents"
            if reads =>
        {
            &["limit", "cursor"]
        }
        "/v1/sessions/{id}/messages" => &["limit", "cursor", "partial", "last", "before", "order"],
        // `auth` reads the token.
        "/v1/sessions/{id}/events" | "/v1/runs/{id}/events" => &["limit", "cursor", "after", "token"],
        "/v1/sessions/{id}/runs" if reads => &["limit", "cursor", "status"],
        "/v1/sessions/{id}/runs" => &["cursor", "after"],
        "/v1/sessions/{id}/cancel" => &["wait", "children"],
        "/v1/runs" => &["limit", "cursor", "status", "session"],
        "/v1/runs/{id}/cancel" => &["wait"],
        "/v1/permissions" => &["limit", "cursor", "state", "session", "run"],
        "/v1/stats" => &["window_seconds"],
        _ => &[],
    }
}

fn check(request: &Request) -> Result<(), Error> {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    if !route.starts_with("/v1/") {
        return Ok(());
    }
    let names = names(request.method(), route);
    let query = Query::<Vec<(String, String)>>::try_from_uri(request.uri());
    let Query(given) = query.map_err(|rejection| Error::malformed("invalid_query", rejection.body_text()))?;
    let Some((unknown, _)) = given.iter().find(|(name, _)| !names.contains(&name.as_str())) else { return Ok(()) };
    let unknown: String = unknown.chars().take(SHOWN_CHARS).collect();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let message = format!("{unknown:?} is no parameter of this route, which takes {known}");
    Err(Error::malformed("invalid_query", message))
}

/// Passes on a request if all its parameters are known.
pub(super) async fn admit(request: Request, next: Next) -> Response {
    match check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

//! The token: who may ask at all.
//!
//! Always: compared in constant time, and never part of a log line or an error.

use axum::extract::{MatchedPath, Query, Request};
use axum::http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::error::Error;
use super::status;
use crate::config::{ServerConfig, Token};

/// Routes that a browser reads with `EventSource`, which cannot set a header: there the query may carry the token.
const STREAMS: [&str; 3] = ["/v1/runs/{id}/events", "/v1/sessions/{id}/events", "/api/chat/{id}/stream"];

/// What a request has to show.
pub(super) struct Auth {
    token: Option<Token>,
}

#[derive(Deserialize)]
struct InQuery {
    token: String,
}

impl Auth {
    pub(super) fn new(config: &ServerConfig) -> Self {
        Self { token: config.token.clone() }
    }

    /// Whether the request may pass.
    pub(super) fn check(&self, request: &Request) -> Result<(), Error> {
        let Some(token) = &self.token else { return Ok(()) };
        let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if reads && route == status::HEALTH {
            return Ok(());
        }
        let is_it = |given: &str| bool::from(given.as_bytes().ct_eq(token.reveal().as_bytes()));
        let in_header = bearer(request.headers()).is_some_and(is_it);
        let in_query = || Query::<InQuery>::try_from_uri(request.uri()).is_ok_and(|query| is_it(&query.token));
        if in_header || (reads && STREAMS.contains(&route) && in_query()) {
            return Ok(());
        }
        let message = "the header \"Authorization: Bearer …\" with this daemon's token is needed";
        Err(Error::new(StatusCode::UNAUTHORIZED, "unauthorized", message))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

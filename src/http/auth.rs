//! Authentication and authorization: a token is a name and a role.
//!
//! Always: a token is compared in constant time, with every configured one; it is never part of a log line or an error.

use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use super::error::Error;
use super::roles::{Need, Needs};
use super::token_file::{TokenFile, TokenFileError};
use crate::config::{ADMIN, ANONYMOUS, AuthMode, Role, ServerConfig, Token, TokenSource};

/// Routes that a browser reads with `EventSource`, which cannot set a header: there the query may carry the token.
const STREAMS: [&str; 3] = ["/v1/runs/{id}/events", "/v1/sessions/{id}/events", "/api/chat/{id}/stream"];

/// Who has access.
#[derive(Debug, Clone)]
pub enum Access {
    /// Every process that can connect, as an administrator: only for a listener on loopback.
    Open,
    /// Those who show one of these tokens.
    Tokens(Vec<Credential>),
}

/// A token, and the name and role that it stands for.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The caller's name, stored as `answered_by` with the answers that it gives.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// The token.
    pub secret: Secret,
}

/// Where a token is looked up for each request.
#[derive(Debug, Clone)]
pub enum Secret {
    /// A token that does not change.
    Fixed(Token),
    /// The content of this file.
    File(Arc<TokenFile>),
}

impl Access {
    /// Access with one token of an administrator.
    pub fn with_token(token: Token) -> Self {
        Self::Tokens(vec![Credential { name: ADMIN.to_owned(), role: Role::Admin, secret: Secret::Fixed(token) }])
    }

    /// What the config says. If it names no token and requires one, the token is in a file beside the database, which is created
    /// if needed. Blocking work.
    ///
    /// # Errors
    /// [`TokenFileError`] of a file that cannot be used, or when two names have the same token.
    pub fn configured(
        config: &ServerConfig,
        database: &std::path::Path,
        file: &std::path::Path,
    ) -> Result<Self, TokenFileError> {
        if config.auth == AuthMode::None {
            return Ok(Self::Open);
        }
        let admin = |secret| Credential { name: ADMIN.to_owned(), role: Role::Admin, secret };
        let mut credentials = Vec::new();
        credentials.extend(config.token.clone().map(|token| admin(Secret::Fixed(token))));
        for (name, token) in &config.tokens {
            let secret = match &token.secret {
                TokenSource::Inline(token) => Secret::Fixed(token.clone()),
                TokenSource::File(path) => Secret::File(TokenFile::named(path)?.into()),
            };
            credentials.push(Credential { name: name.as_str().to_owned(), role: token.role, secret });
        }
        if credentials.is_empty() {
            credentials.push(admin(Secret::File(TokenFile::beside(database, file)?.into())));
        }
        let tokens: Vec<_> = credentials.iter().map(|credential| (&credential.name, credential.secret.now())).collect();
        for (index, (name, token)) in tokens.iter().enumerate() {
            if let Some((other, _)) = tokens.iter().take(index).find(|(_, other)| other == token) {
                return Err(TokenFileError::Twice { names: [(*other).clone(), (*name).clone()] });
            }
        }
        Ok(Self::Tokens(credentials))
    }

    /// The file with the generated token, if no token is configured.
    pub fn made_file(&self) -> Option<&TokenFile> {
        let Self::Tokens(credentials) = self else { return None };
        credentials.iter().find_map(|credential| match &credential.secret {
            Secret::File(file) if credential.name == ADMIN => Some(file.as_ref()),
            Secret::File(_) | Secret::Fixed(_) => None,
        })
    }
}

impl Secret {
    fn now(&self) -> Token {
        match self {
            Self::Fixed(token) => token.clone(),
            Self::File(file) => file.current(),
        }
    }
}

/// The authenticated caller.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    name: Arc<str>,
    role: Role,
}

impl Caller {
    /// Its configured name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Refuses a caller with a lesser role.
    pub(super) fn check(&self, needed: Role) -> Result<(), Error> {
        if self.role >= needed {
            return Ok(());
        }
        let (name, role, needed) = (&self.name, self.role.as_str(), needed.as_str());
        let message = format!("this needs the role {needed}, and the token of {name} has the role {role}");
        Err(Error::new(StatusCode::FORBIDDEN, "forbidden", message))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Error::internal("a handler asked who calls, on a route that needs no token"))
    }
}

#[derive(Deserialize)]
struct InQuery {
    token: String,
}

/// Checks the tokens of requests.
pub(super) struct Auth {
    access: Access,
}

impl Auth {
    pub(super) fn new(access: Access) -> Self {
        Self { access }
    }

    pub(super) fn needs_token(&self) -> bool {
        matches!(self.access, Access::Tokens(_))
    }

    /// Extracts what a request shows, to be checked.
    pub(super) fn read(&self, needs: &Needs, request: &Request) -> Shown {
        let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        Shown { need: needs.of(request.method(), route), token: shown(request, route) }
    }

    /// The caller, if the route requires one; an error if it is not allowed.
    pub(super) async fn check(&self, shown: Shown) -> Result<Option<Caller>, Error> {
        let Need::Role(role) = shown.need else { return Ok(None) };
        let caller = match &self.access {
            Access::Open => Caller { name: ANONYMOUS.into(), role: Role::Admin },
            Access::Tokens(credentials) => {
                let token = shown.token.ok_or_else(unauthorized)?;
                find(credentials, token).await?.ok_or_else(unauthorized)?
            }
        };
        caller.check(role)?;
        Ok(Some(caller))
    }
}

/// What a route requires and what the request shows.
pub(super) struct Shown {
    need: Need,
    token: Option<String>,
}

fn unauthorized() -> Error {
    let message =
        "the header \"Authorization: Bearer …\" with a token of this daemon is needed (`mainstay token` says where)";
    Error::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
}

/// The token that a request shows.
fn shown(request: &Request, route: &str) -> Option<String> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let in_query = || {
        let query = Query::<InQuery>::try_from_uri(request.uri()).ok()?;
        (reads && STREAMS.contains(&route)).then_some(query.0.token)
    };
    bearer(request.headers()).map(str::to_owned).or_else(in_query)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The caller that a token belongs to.
async fn find(credentials: &[Credential], shown: String) -> Result<Option<Caller>, Error> {
    let is_it = |token: &Token| bool::from(token.reveal().as_bytes().ct_eq(shown.as_bytes()));
    let mut found: Option<Caller> = None;
    for credential in credentials {
        let token = match &credential.secret {
            Secret::Fixed(token) => token.clone(),
            Secret::File(file) => {
                let file = file.clone();
                // It fails only when the runtime shuts down.
                let current = tokio::task::spawn_blocking(move || file.current()).await;
                current.map_err(|_| Error::unavailable("shutting_down", "the daemon is going down"))?
            }
        };
        // Two files can come to hold the same token: it then grants only the lesser role.
        if is_it(&token) && found.as_ref().is_none_or(|found| credential.role < found.role) {
            found = Some(Caller { name: credential.name.as_str().into(), role: credential.role });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn token_of_two_names_has_the_lesser_role() {
        let credential = |name: &str, role| {
            let secret = Secret::Fixed("0123456789abcdef0123456789abcdef".parse().unwrap());
            Credential { name: name.to_owned(), role, secret }
        };
        let (lesser, greater) = (credential("a", Role::Viewer), credential("b", Role::Admin));
        for credentials in [[lesser.clone(), greater.clone()], [greater, lesser]] {
            let found = find(&credentials, "0123456789abcdef0123456789abcdef".to_owned()).await.ok().flatten();
            assert_eq!(found.map(|caller| (caller.name, caller.role)), Some(("a".into(), Role::Viewer)));
        }
    }
}

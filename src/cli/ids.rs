//! Ids as given on the command line: complete, or a prefix that only one id has. Tables show such prefixes.
//!
//! Always: a complete id means itself, whatever other ids begin with it; a prefix of several ids is refused, and they are
//! named.

use anyhow::Context;
use uuid::Uuid;

use super::Target;
use crate::engine::{Engine, EngineError, IdKind};
use crate::id::{BackendId, PermissionId, RunId, SessionId};

/// A shorter prefix is more likely a typo.
const MIN_CHARS: usize = 4;
/// How many of the ids with the same prefix are named.
const NAMED: i64 = 5;

/// What a target was found to be.
pub(super) enum Found {
    Run(RunId),
    Session(SessionId),
}

/// Several ids begin with the given prefix.
#[derive(Debug, thiserror::Error)]
#[error("{given} is the beginning of several ids, give more of it: {candidates}")]
pub struct AmbiguousId {
    given: String,
    candidates: String,
}

/// Looks a target up: as a run, then as a session, then as the prefix of either.
pub(super) async fn find(engine: &Engine, target: &Target) -> anyhow::Result<Found> {
    if let Some(run) = target.run {
        match engine.run(run).await {
            Ok(run) => return Ok(Found::Run(run.id)),
            Err(EngineError::NotFound { .. }) => {}
            Err(error) => return Err(error).context("failed to look the run up"),
        }
    }
    match engine.session(&target.session).await {
        Ok(session) => return Ok(Found::Session(session.id)),
        Err(EngineError::NotFound { .. }) => {}
        Err(error) => return Err(error).context("failed to look the session up"),
    }
    match beginning(engine, &[IdKind::Run, IdKind::Session], target.session.as_str()).await? {
        Some((IdKind::Run, id)) => Ok(Found::Run(id.parse()?)),
        Some((_, id)) => Ok(Found::Session(id.parse()?)),
        None => Err(EngineError::NotFound { what: "run or session", id: target.session.to_string() }.into()),
    }
}

/// An existing session.
pub(super) async fn session(engine: &Engine, given: &SessionId) -> anyhow::Result<SessionId> {
    match engine.session(given).await {
        Err(EngineError::NotFound { .. }) => {}
        found => return Ok(found.context("failed to look the session up")?.id),
    }
    one(engine, IdKind::Session, given.as_str()).await
}

/// A session that exists or is to be created. Only the prefix of an id that Mainstay made is taken for one: any other text is
/// the name of a new session.
pub(super) async fn session_or_new(engine: &Engine, given: &SessionId) -> anyhow::Result<SessionId> {
    if !begins_a_uuid(given.as_str()) {
        return Ok(given.clone());
    }
    match engine.session(given).await {
        Err(EngineError::NotFound { .. }) => {}
        found => return Ok(found.context("failed to look the session up")?.id),
    }
    let found = beginning(engine, &[IdKind::Session], given.as_str()).await?;
    Ok(found.map(|(_, id)| id.parse()).transpose()?.unwrap_or_else(|| given.clone()))
}

/// An existing run.
pub(super) async fn run(engine: &Engine, given: &str) -> anyhow::Result<RunId> {
    whole_or_one(engine, IdKind::Run, given).await
}

/// An existing permission.
pub(super) async fn permission(engine: &Engine, given: &str) -> anyhow::Result<PermissionId> {
    whole_or_one(engine, IdKind::Permission, given).await
}

/// An existing backend.
pub(super) async fn backend(engine: &Engine, given: &str) -> anyhow::Result<BackendId> {
    whole_or_one(engine, IdKind::Backend, given).await
}

async fn whole_or_one<T>(engine: &Engine, kind: IdKind, given: &str) -> anyhow::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    match given.parse() {
        Ok(id) => Ok(id),
        Err(_) => one(engine, kind, given).await,
    }
}

/// The one id of a kind that begins with `given`.
async fn one<T>(engine: &Engine, kind: IdKind, given: &str) -> anyhow::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    match beginning(engine, &[kind], given).await? {
        Some((_, id)) => Ok(id.parse()?),
        None => Err(EngineError::NotFound { what: word(kind), id: given.to_owned() }.into()),
    }
}

async fn beginning(engine: &Engine, kinds: &[IdKind], given: &str) -> anyhow::Result<Option<(IdKind, String)>> {
    // Ids are stored in lower case.
    let lower = given.to_ascii_lowercase();
    let given = if begins_a_uuid(&lower) { lower.as_str() } else { given };
    if given.len() < MIN_CHARS {
        return Ok(None);
    }
    let mut found = engine.ids_beginning_with(given, NAMED).await.context("failed to look the id up")?;
    found.retain(|(kind, _)| kinds.contains(kind));
    if found.len() > 1 {
        let candidates: Vec<_> = found.iter().map(|(kind, id)| format!("{} {id}", word(*kind))).collect();
        return Err(AmbiguousId { given: given.to_owned(), candidates: candidates.join(", ") }.into());
    }
    Ok(found.pop())
}

fn word(kind: IdKind) -> &'static str {
    match kind {
        IdKind::Run => "run",
        IdKind::Session => "session",
        IdKind::Permission => "permission",
        IdKind::Backend => "backend",
    }
}

/// Whether a text is the prefix of a UUID, at least as long as tables show it.
fn begins_a_uuid(text: &str) -> bool {
    const PATTERN: &str = "00000000-0000-0000-0000-000000000000";
    let rest = PATTERN.get(text.len()..);
    text.len() > PATTERN.find('-').unwrap_or(0)
        && rest.is_some_and(|rest| Uuid::try_parse(&format!("{text}{rest}")).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginning_of_a_uuid_has_its_shape() {
        for text in ["0192f0c1-2345", "0192F0C1-2345-7", "0192f0c1-", "0192f0c1-2345-7000-8000-0123456789ab"] {
            assert!(begins_a_uuid(text), "{text}");
        }
        for text in ["", "0192f0c1", "deadbeef", "web-1", "0192f0c12345", "0192f0c1-234g", "é192f0c1-2345"] {
            assert!(!begins_a_uuid(text), "{text}");
        }
    }
}

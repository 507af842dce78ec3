//! Whether the stored rows can be read as the commands and HTTP read them: by the same methods, all of them.

use std::path::Path;

use crate::audit::{Check, Finding, Verdict};
use crate::config::Config;
use crate::engine::{Engine, EngineError, MessageCursor, RunFilter};
use crate::id::SessionId;
use crate::store::permission::PermissionFilter;

/// Rows that are read at once.
const PAGE: i64 = 500;

/// Opens the file as commands that only read do, and reads every row that they may show.
pub(super) async fn check(path: &Path, config: &Config) -> Check {
    let findings = match Engine::open_to_read(path, config.clone()).await {
        Ok(engine) => {
            let findings = unreadable(&engine).await;
            engine.close().await;
            findings
        }
        Err(error) => vec![Finding::new(path.display(), error.to_string())],
    };
    let advice = "restore a backup, or put these rows right with sqlite3: commands that show them fail until then";
    Check::new("rows", Verdict::Error, advice, findings)
}

/// The rows that cannot be read: the first one of each list, which the error names.
async fn unreadable(engine: &Engine) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut note = |list: &str, read: Result<(), EngineError>| {
        found.extend(read.err().map(|error| Finding::new(list, error.to_string())));
    };
    note("slots", engine.list_slots().await.map(drop));
    note("workers", engine.list_workers().await.map(drop));
    note("backends", engine.list_backends().await.map(drop));
    note("runs", read_runs(engine).await);
    note("permissions", read_permissions(engine).await);
    let mut after = None;
    loop {
        let page = match engine.list_sessions(after, PAGE).await {
            Ok(page) => page,
            Err(error) => {
                note("sessions", Err(error));
                break;
            }
        };
        let Some((cursor, _)) = page.last() else { break };
        after = Some(*cursor);
        for (_, session) in &page {
            note(&format!("messages of {}", session.id), read_messages(engine, &session.id).await);
            let known = engine.list_agent_sessions(&session.id).await;
            note(&format!("agent sessions of {}", session.id), known.map(drop));
        }
    }
    found
}

async fn read_runs(engine: &Engine) -> Result<(), EngineError> {
    let mut filter = RunFilter::default();
    while let Some((cursor, _)) = engine.list_runs(&filter, PAGE).await?.last() {
        filter.before = Some(*cursor);
    }
    Ok(())
}

async fn read_permissions(engine: &Engine) -> Result<(), EngineError> {
    let mut filter = PermissionFilter::default();
    while let Some((cursor, _)) = engine.list_permissions(&filter, PAGE).await?.last() {
        filter.before = Some(*cursor);
    }
    Ok(())
}

async fn read_messages(engine: &Engine, session: &SessionId) -> Result<(), EngineError> {
    let mut after = Some(MessageCursor::START);
    while let Some(from) = after {
        after = engine.list_messages(session, from, PAGE, true).await?.next;
    }
    Ok(())
}

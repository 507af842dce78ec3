//! `session`: one session, its options, and the sessions that work for it. All of it comes from the database: no agent is
//! asked or started.

use std::io::Write;

use anyhow::Context;
use serde_json::json;

use super::exit::Exit;
use super::ids;
use super::tree::Branch;
use super::{SessionArgs, deciding, table};
use crate::engine::{CreateSession, Engine};
use crate::id::SessionId;
use crate::options::SessionOptions;
use crate::session::{AgentSession, OptionsReport, SessionMode};

/// How many of the sessions below it are shown at most.
const CHILDREN: i64 = 500;

pub(super) async fn run(engine: &Engine, args: &SessionArgs, json: bool, out: &mut impl Write) -> anyhow::Result<Exit> {
    let id = &match args.new {
        true => args.session.clone(),
        false => ids::session(engine, &args.session).await?,
    };
    let patch = SessionOptions::patch_of(args.changes());
    if args.reset || !patch.is_empty() {
        deciding::check().await?;
    }
    if args.new {
        let create = CreateSession {
            id: Some(id.clone()),
            workspace: args.workspace.clone(),
            agent: args.agent.clone(),
            mode: args.oneshot.then_some(SessionMode::Oneshot),
            spawned_by: parent(engine, args).await?,
            label: args.label.clone(),
            options: (!patch.is_empty()).then_some(patch),
            ..CreateSession::default()
        };
        engine.create_session(create).await.context("failed to make the session")?;
    } else if !patch.is_empty() {
        engine.update_options(id, patch).await.context("failed to change the session")?;
    }
    if args.reset {
        engine.reset_session(id, false).await.context("failed to reset the session")?;
    }
    let session = engine.session(id).await?;
    let told = engine.session_options(id).await?;
    let history = engine.list_agent_sessions(id).await?;
    let below = engine.list_descendants(id, 0, CHILDREN).await?.into_iter().map(|(_, session)| session).collect();
    if json {
        let all = json!({"session": session, "told": told, "agent_sessions": history, "children": below});
        table::json(out, &all)?;
        return Ok(Exit::Done);
    }
    table::record(out, &session, false)?;
    options(out, &told)?;
    agent_sessions(out, &history)?;
    let below = Branch::all_of(below);
    if !below.is_empty() {
        writeln!(out)?;
        table::list(engine, out, &below, false).await?;
    }
    Ok(Exit::Done)
}

async fn parent(engine: &Engine, args: &SessionArgs) -> anyhow::Result<Option<SessionId>> {
    Ok(match &args.spawned_by {
        Some(parent) => Some(ids::session(engine, parent).await?),
        None => None,
    })
}

fn options(out: &mut impl Write, told: &OptionsReport) -> anyhow::Result<()> {
    for (option, effect) in &told.effects {
        writeln!(out, "option {option}: {}", effect.as_str())?;
    }
    Ok(())
}

fn agent_sessions(out: &mut impl Write, history: &[AgentSession]) -> anyhow::Result<()> {
    for one in history {
        let lost = one.lost_in.map(|run| format!(", lost in {run}")).unwrap_or_default();
        let id = super::plain::one_line(&one.id, 200);
        writeln!(out, "agent session {id}: {}, last used by {}{lost}", one.origin, one.run_id)?;
    }
    Ok(())
}

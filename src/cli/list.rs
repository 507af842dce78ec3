//! `sessions`, `runs`, `messages`, `slots`, `workers`, `show`, `sweep`: tables, or JSON.

use std::io::Write;

use anyhow::Context;
use serde_json::json;

use super::exit::Exit;
use super::ids::{self, Found, find};
use super::plain::plain;
use super::tree::Branch;
use super::{Command, RunsArgs, ShowArgs, table, waiting};
use crate::engine::{Engine, MessageCursor, RunFilter};
use crate::id::SessionId;

/// Rows that are read at once.
const PAGE: i64 = 500;

pub(super) async fn run(engine: &Engine, command: &Command, json: bool, out: &mut impl Write) -> anyhow::Result<Exit> {
    match command {
        Command::Sessions(args) => {
            let sessions = engine.list_sessions(None, i64::from(args.list.limit)).await?;
            let sessions: Vec<_> = sessions.into_iter().map(|(_, session)| session).collect();
            match args.tree {
                true => table::list(engine, out, &Branch::all_of(sessions), json).await?,
                false => table::list(engine, out, &sessions, json).await?,
            }
        }
        Command::Runs(args) => runs(engine, args, json, out).await?,
        Command::Messages(args) => messages(engine, &args.session, json, out).await?,
        Command::Slots => table::list(engine, out, &engine.list_slots().await?, json).await?,
        Command::Workers => table::list(engine, out, &engine.list_workers().await?, json).await?,
        Command::Show(args) => show(engine, args, json, out).await?,
        _ => table::record(out, &engine.sweep().await.context("failed to sweep")?, json)?,
    }
    Ok(Exit::Done)
}

async fn runs(engine: &Engine, args: &RunsArgs, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let session = match &args.session {
        Some(session) => Some(ids::session(engine, session).await?),
        None => None,
    };
    let filter = RunFilter { session, status: args.status, before: None };
    let runs = engine.list_runs(&filter, i64::from(args.list.limit)).await?;
    let runs: Vec<_> = runs.into_iter().map(|(_, run)| run).collect();
    table::list(engine, out, &runs, json).await
}

async fn messages(engine: &Engine, session: &SessionId, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let session = &ids::session(engine, session).await?;
    let mut messages = Vec::new();
    let mut after = Some(MessageCursor::START);
    while let Some(cursor) = after {
        let page = engine.list_messages(session, cursor, PAGE, true).await?;
        messages.extend(page.messages);
        if page.next.is_none() {
            messages.extend(page.queued);
        }
        after = page.next;
    }
    table::list(engine, out, &messages, json).await
}

async fn show(engine: &Engine, args: &ShowArgs, as_json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    match find(engine, &args.target).await? {
        Found::Run(id) => {
            let (stderr, malformed_sample) = engine.run_diagnostics(id).await?;
            let shown = engine.run(id).await?;
            let mut run = serde_json::to_value(&shown)?;
            if let Some(reason) = shown.waits_for.filter(|_| !as_json) {
                run["waits_for"] = json!(waiting::explain(reason, &shown));
            }
            run["malformed_sample"] = json!(malformed_sample);
            if as_json {
                run["stderr"] = json!(stderr);
                table::record(out, &run, true)?;
            } else {
                table::record(out, &run, false)?;
                // Complete, and on its own lines: this is where people look for the reason of a failed run.
                if let Some(stderr) = stderr {
                    writeln!(out, "stderr:\n{}", plain(stderr.trim_end()))?;
                }
            }
        }
        Found::Session(id) => {
            let mut session = serde_json::to_value(engine.session(&id).await?)?;
            session["current_run"] = json!(engine.current_run(&id).await?);
            table::record(out, &session, as_json)?;
        }
    }
    Ok(())
}

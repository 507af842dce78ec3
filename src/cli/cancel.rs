//! `cancel` and `close`: end what a session does, and free its slot.

use std::io::Write;

use anyhow::Context;

use super::exit::Exit;
use super::ids::{self, Found, find};
use super::{CancelArgs, CloseArgs, table};
use crate::engine::Engine;

pub(super) async fn cancel(
    engine: &Engine,
    args: &CancelArgs,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let (run, session) = match find(engine, &args.target).await? {
        Found::Run(run) => {
            let run = engine.cancel_run(run).await.context("failed to cancel")?.0;
            (Some(run.clone()), run.session_id)
        }
        Found::Session(session) => (engine.cancel_session(&session).await.context("failed to cancel")?, session),
    };
    let below = match args.children {
        true => engine.cancel_descendants(&session).await.context("failed to cancel what is below")?,
        false => Vec::new(),
    };
    let is_unsettled = run.as_ref().is_some_and(|run| !run.status.is_settled());
    if (is_unsettled || !below.is_empty()) && !engine.is_executed_elsewhere().await? {
        // No daemon is there to act on the cancel: the sweep ends the runs of a dead one.
        engine.sweep().await.context("failed to sweep")?;
    }
    let run = match run {
        Some(run) if args.wait => Some(engine.wait_settled(run.id).await?),
        run => run,
    };
    if !json && !below.is_empty() {
        writeln!(out, "{} runs below are being cancelled", below.len())?;
    }
    match run {
        Some(run) if json => table::json(out, &run)?,
        Some(run) if run.status.is_settled() => writeln!(out, "{} {}", run.id, run.status)?,
        Some(run) => writeln!(out, "{} is being cancelled", run.id)?,
        None if json => table::json(out, &serde_json::json!({"run": null}))?,
        None => writeln!(out, "nothing to cancel")?,
    }
    Ok(Exit::Done)
}

pub(super) async fn close(engine: &Engine, args: &CloseArgs, json: bool, out: &mut impl Write) -> anyhow::Result<Exit> {
    let session = ids::session(engine, &args.session).await?;
    let mut closed = engine.close_session(&session, args.cancel).await.context("failed to close")?;
    if closed.closing && !engine.is_executed_elsewhere().await? {
        engine.finish_closing().await.context("failed to cancel the queue")?;
        closed = engine.session(&session).await?;
    }
    let session = closed;
    match (json, &session.assignment) {
        (true, _) => table::json(out, &session)?,
        (false, None) => writeln!(out, "{} closed", session.id)?,
        (false, Some(_)) => writeln!(out, "{} closes when its run has ended", session.id)?,
    }
    Ok(Exit::Done)
}

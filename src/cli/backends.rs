//! `backends`: lists the warm agent processes, and stops one.

use std::io::Write;

use anyhow::Context;

use super::exit::Exit;
use super::ids;
use super::{BackendsArgs, BackendsCommand, table};
use crate::engine::Engine;
use crate::telemetry;

pub(super) async fn run(
    engine: &Engine,
    args: &BackendsArgs,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let Some(BackendsCommand::Stop { id, force }) = &args.command else {
        table::list(engine, out, &engine.list_backends().await?, json).await?;
        return Ok(Exit::Done);
    };
    let id = ids::backend(engine, id).await?;
    let backend = engine.stop_backend(id, *force).await.context("failed to stop")?;
    let has_ended = backend.stopped_at.is_some();
    match (json, has_ended) {
        (true, _) => table::json(out, &backend)?,
        (false, true) => writeln!(out, "{id} has ended")?,
        (false, false) => writeln!(out, "{id} ends as soon as no turn is on it")?,
    }
    if !has_ended && !engine.is_executed_elsewhere().await? {
        telemetry::say("(no daemon runs on this file: the next one does it)\n");
    }
    Ok(Exit::Done)
}

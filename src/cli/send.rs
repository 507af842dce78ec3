//! `send`: queues a run and prints its id; does not wait.

use std::io::Write;

use anyhow::Context;

use super::exit::Exit;
use super::ids;
use super::{SendArgs, table};
use crate::engine::{Engine, SendMessage};
use crate::message::UserMessage;
use crate::run::{RunOptions, Status};

pub(super) async fn run(
    engine: &Engine,
    args: &SendArgs,
    message: UserMessage,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let session = ids::session_or_new(engine, &args.session).await?;
    let mut send = SendMessage::new(session, message);
    send.options = RunOptions { when_busy: args.when_busy, priority: args.priority, timeout: None };
    let run = engine.send(send).await.context("failed to send")?.run;
    if json {
        table::json(out, &run)?;
    } else {
        writeln!(out, "{}", run.id)?;
    }
    if run.status == Status::Queued {
        warn_if_nobody_executes(engine).await?;
    }
    Ok(Exit::Done)
}

/// Warns if a queued run waits for a daemon that is not running: otherwise the wait would look like a hang.
pub(super) async fn warn_if_nobody_executes(engine: &Engine) -> anyhow::Result<()> {
    if !engine.is_executed_elsewhere().await? {
        tracing::warn!("the run waits: no process executes runs on this file now (`mainstay serve` does)");
    }
    Ok(())
}

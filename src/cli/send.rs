//! `send`: queues a run and prints its id; does not wait.

use std::io::Write;

use anyhow::Context;

use super::exit::Exit;
use super::{SendArgs, table};
use crate::engine::{Engine, Send};
use crate::id::MessageId;
use crate::message::UserMessage;
use crate::run::RunOptions;

pub(super) async fn run(engine: &Engine, args: &SendArgs, json: bool, out: &mut impl Write) -> anyhow::Result<Exit> {
    let message = UserMessage::text(MessageId::generate(), args.message()?)?;
    let mut send = Send::new(args.session.clone(), message);
    send.options = RunOptions { when_busy: args.when_busy, priority: args.priority, timeout: None };
    let run = engine.send(send).await.context("failed to send")?.run;
    if json {
        table::json(out, &run)?;
    } else {
        writeln!(out, "{}", run.id)?;
    }
    Ok(Exit::Done)
}

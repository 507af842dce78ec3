//! `run`: one turn, followed to its end. A daemon on the same file executes it; without one, this process does.

use std::time::Duration;

use anyhow::Context;

use super::exit::Exit;
use super::signals::StopSignals;
use super::stream::StreamOutput;
use super::{AttachFormat, RunArgs};
use crate::engine::{Engine, Send};
use crate::id::{MessageId, SessionId};
use crate::message::UserMessage;
use crate::run::{Run, Status};

/// How often a run that nobody has claimed yet is looked at: the daemon that would take it may have gone.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn run(engine: &Engine, args: &RunArgs, json: bool) -> anyhow::Result<Exit> {
    let message = UserMessage::text(MessageId::generate(), args.message()?)?;
    let session = args.session.clone().unwrap_or_else(SessionId::generate);
    let mut signals = StopSignals::new()?;
    let mut send = Send::new(session.clone(), message);
    send.agent = args.agent.clone();
    send.workspace = args.workspace.clone();
    let run = engine.send(send).await.context("failed to send")?.run;
    tracing::info!(run.id = %run.id, session.id = %session, "sent");

    let mut output = StreamOutput::new(if json { AttachFormat::Ndjson } else { AttachFormat::Text });
    let mut follower = engine.follow_run(run.id, 0).await?;
    let mut look = tokio::time::interval(LOOK_AGAIN);
    let mut executing = false;
    let mut interrupted = false;
    loop {
        tokio::select! {
            events = follower.next_events() => match events? {
                Some(events) => output.write(&events)?,
                None => break,
            },
            () = signals.next() => {
                if interrupted {
                    // A second time: whoever asks does not want to wait for the agent to stop by itself.
                    engine.end_now();
                }
                interrupted = true;
                engine.cancel_run(run.id).await.context("failed to cancel")?;
            }
            _ = look.tick(), if !executing => {
                if engine.run(run.id).await?.status == Status::Queued && !engine.is_executed_elsewhere().await? {
                    // What a daemon that died has left in this session would be in the way.
                    engine.sweep().await?;
                    engine.execute_session(&session).await?;
                    executing = true;
                }
            }
        }
    }
    output.end()?;
    let run = engine.run(run.id).await?;
    if args.session.is_none() && !json {
        tracing::info!(session.id = %session, "go on with --session");
    }
    Ok(if interrupted { Exit::Interrupted } else { exit_of(&run) })
}

/// The exit status that a settled run asks for.
pub(super) fn exit_of(run: &Run) -> Exit {
    if run.status == Status::Completed { Exit::Done } else { Exit::Failed }
}

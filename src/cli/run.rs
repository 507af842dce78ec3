//! `run`: one turn, followed to its end. A daemon on the same file executes it; without one, this process does. Its agent's
//! questions are asked at the terminal.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;

use super::exit::Exit;
use super::ids;
use super::permissions::Asking;
use super::signals::StopSignals;
use super::stream::StreamOutput;
use super::waiting::Waiting;
use super::{AttachFormat, RunArgs};
use crate::engine::{Engine, SendMessage};
use crate::failure::ErrorClass;
use crate::id::SessionId;
use crate::message::UserMessage;
use crate::run::{Run, Status};
use crate::telemetry;

/// Poll interval for whether some process executes the run: the daemon that would may have stopped.
const RUN_POLL_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(engine: &Engine, args: &RunArgs, message: UserMessage, json: bool) -> anyhow::Result<Exit> {
    let session = match &args.session {
        Some(session) => ids::session_or_new(engine, session).await?,
        None => SessionId::generate(),
    };
    let mut signals = StopSignals::new()?;
    let mut send = SendMessage::new(session.clone(), message);
    send.agent = args.agent.clone();
    send.workspace = args.workspace.clone();
    // A later run that names this session makes it keep its slot.
    send.close_when_idle = args.session.is_none();
    let run = engine.send(send).await.context("failed to send")?.run;
    tracing::info!(run.id = %run.id, session.id = %session, "sent");

    let mut output = StreamOutput::new(if json { AttachFormat::Ndjson } else { AttachFormat::Text });
    let mut asking = Asking::new(json).await;
    let mut waiting = Waiting::new(json);
    let mut follower = engine.follow_run(run.id, 0).await?;
    let mut look = tokio::time::interval(RUN_POLL_INTERVAL);
    let mut executing = false;
    let mut interrupted = false;
    loop {
        tokio::select! {
            events = follower.next_events() => match events? {
                Some(events) => {
                    output.write(&events)?;
                    asking.hear(engine, &events).await?;
                }
                None => break,
            },
            failure = engine.failed() => return Err(failure.into()),
            line = asking.line() => asking.answer(engine, line).await?,
            () = waiting.tick() => waiting.look(&engine.run(run.id).await?),
            () = signals.next() => {
                if interrupted {
                    // The second Ctrl-C: the person does not want to wait for the agent to stop by itself.
                    engine.kill_now();
                }
                interrupted = true;
                engine.cancel_run(run.id).await.context("failed to cancel")?;
            }
            _ = look.tick(), if !executing => {
                // The daemon that had the run may die at any time. The sweep that comes with executing settles what it left.
                if !engine.run(run.id).await?.status.is_settled() && !engine.is_executed_elsewhere().await? {
                    engine.execute_until(run.id).await?;
                    executing = true;
                }
            }
        }
    }
    output.end()?;
    let run = engine.run(run.id).await?;
    if !json {
        advise(&run);
    }
    if args.session.is_none() && !json && std::io::stderr().is_terminal() {
        telemetry::say(&format!("(go on with: --session {session})\n"));
    }
    Ok(if interrupted { Exit::Interrupted } else { exit_of(run.status) })
}

/// Prints the advice on a failure to stderr.
pub(super) fn advise(run: &Run) {
    if let Some(advice) = run.advice {
        telemetry::say(&format!("{advice}\n"));
    }
    if let Some(at) = run.retry_at {
        let what = match run.error_class {
            Some(ErrorClass::RateLimit | ErrorClass::Overloaded) => "The limit is over",
            _ => "It can be tried again",
        };
        telemetry::say(&format!("{what} at {at}.\n"));
    }
}

/// The exit status for a run that ended with this status.
pub(super) fn exit_of(status: Status) -> Exit {
    if status == Status::Completed { Exit::Done } else { Exit::Failed }
}

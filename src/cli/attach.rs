//! `attach`: a run or a session from any point on, replayed and followed. Only looks: Ctrl-C detaches, the run goes on.

use anyhow::Context;

use super::exit::Exit;
use super::run::{advise, exit_of};
use super::send::warn_if_nobody_executes;
use super::signals::StopSignals;
use super::stream::StreamOutput;
use super::{AttachArgs, AttachFormat, Target};
use crate::engine::{Engine, EngineError, Follower};
use crate::id::{RunId, SessionId};
use crate::run::Status;
use crate::session::Execution;

/// What a target turned out to be.
pub(super) enum Found {
    Run(RunId),
    Session(SessionId),
}

/// Looks a target up: as a run, then as a session.
pub(super) async fn find(engine: &Engine, target: &Target) -> anyhow::Result<Found> {
    if let Some(run) = target.run {
        match engine.run(run).await {
            Ok(run) => return Ok(Found::Run(run.id)),
            Err(EngineError::NotFound { .. }) => {}
            Err(error) => return Err(error).context("failed to look the run up"),
        }
    }
    match engine.session(&target.session).await {
        Ok(session) => Ok(Found::Session(session.id)),
        Err(EngineError::NotFound { .. }) => Err(anyhow::anyhow!("there is no run and no session {}", target.session)),
        Err(error) => Err(error).context("failed to look the session up"),
    }
}

pub(super) async fn run(engine: &Engine, args: &AttachArgs, json: bool) -> anyhow::Result<Exit> {
    let mut output = StreamOutput::new(args.format(json));
    let mut signals = StopSignals::new()?;
    let found = find(engine, &args.target).await?;
    let waits = match &found {
        Found::Run(run) => engine.run(*run).await?.status == Status::Queued,
        Found::Session(session) => engine.session(session).await?.execution == Execution::Queued,
    };
    if waits {
        warn_if_nobody_executes(engine).await?;
    }
    let mut follower = match &found {
        Found::Run(run) => engine.follow_run(*run, args.after).await?,
        Found::Session(session) => engine.follow_session(session, args.after).await?,
    };
    loop {
        if let Found::Session(session) = &found
            && !args.follow
            && let Some(exit) = at_rest(engine, session, &follower).await?
        {
            return Ok(exit);
        }
        tokio::select! {
            events = follower.next_events() => match events? {
                Some(events) => output.write(&events)?,
                None => break,
            },
            () = signals.next() => return Ok(Exit::Interrupted),
        }
    }
    output.end()?;
    match found {
        Found::Run(run) => {
            let run = engine.run(run).await?;
            if args.format(json) == AttachFormat::Text {
                advise(&run);
            }
            Ok(exit_of(run.status))
        }
        Found::Session(_) => Ok(Exit::Done),
    }
}

/// How the last run of a session ended, when all of it has been shown and nothing more is to come by itself.
async fn at_rest(engine: &Engine, session: &SessionId, follower: &Follower) -> anyhow::Result<Option<Exit>> {
    let session = engine.session(session).await?;
    let is_at_rest = session.execution == Execution::Idle && follower.cursor() >= session.last_seq;
    Ok(is_at_rest.then(|| session.last_outcome.map_or(Exit::Done, exit_of)))
}

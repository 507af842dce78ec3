//! `attach`: a run or a session from any point on, replayed and followed. Read-only: Ctrl-C detaches, the run goes on.

use std::path::Path;

use super::exit::Exit;
use super::ids::{Found, find};
use super::run::{advise, exit_of};
use super::signals::StopSignals;
use super::stream::StreamOutput;
use super::waiting::Waiting;
use super::{AttachArgs, AttachFormat, read_only};
use crate::config::Config;
use crate::engine::{Engine, Follower};
use crate::event::Seq;
use crate::id::SessionId;
use crate::session::Execution;

pub(super) async fn run(db: &Path, config: &Config, args: &AttachArgs, json: bool) -> anyhow::Result<Exit> {
    let mut shown = Shown {
        output: StreamOutput::new(args.format(json)),
        signals: StopSignals::new()?,
        after: args.after,
        waiting: Waiting::new(json),
    };
    loop {
        let engine = read_only::open(db, config).await?;
        let exit = show(&engine, args, json, &mut shown).await;
        let is_outdated = engine.is_outdated();
        engine.close().await;
        match exit {
            // A daemon has opened the file: what it writes can be read by a newly opened engine.
            Ok(None) => {}
            Err(_) if is_outdated => {}
            exit => return Ok(exit?.unwrap_or(Exit::Done)),
        }
    }
}

/// What was shown, across all engines that were opened for it.
struct Shown {
    output: StreamOutput,
    signals: StopSignals,
    after: Seq,
    waiting: Waiting,
}

/// Shows what an engine reads; none if its view is outdated before the end.
async fn show(engine: &Engine, args: &AttachArgs, json: bool, shown: &mut Shown) -> anyhow::Result<Option<Exit>> {
    let found = find(engine, &args.target).await?;
    let mut follower = match &found {
        Found::Run(run) => engine.follow_run(*run, shown.after).await?,
        Found::Session(session) => engine.follow_session(session, shown.after).await?,
    };
    loop {
        if let Found::Session(session) = &found
            && !args.follow
            && let Some(exit) = at_rest(engine, session, &follower).await?
        {
            return Ok((!engine.is_outdated()).then_some(exit));
        }
        tokio::select! {
            events = follower.next_events() => {
                let events = events?;
                if engine.is_outdated() {
                    return Ok(None);
                }
                let Some(events) = events else { break };
                // One by one: what was shown before a failure is not shown again by the next engine.
                for event in &*events {
                    let event = std::slice::from_ref(event);
                    match &found {
                        Found::Run(_) => shown.output.write(event)?,
                        Found::Session(_) => shown.output.write_conversation(engine, event).await?,
                    }
                    shown.after = event.iter().find_map(|event| event.seq).unwrap_or(shown.after);
                }
                shown.after = follower.cursor();
            }
            failure = engine.failed() => return Err(failure.into()),
            () = shown.waiting.tick() => {
                let run = match &found {
                    Found::Run(run) => Some(engine.run(*run).await?),
                    Found::Session(session) => engine.current_run(session).await?,
                };
                if let Some(run) = run.filter(|_| !engine.is_outdated()) {
                    shown.waiting.look(&run);
                }
            }
            () = engine.outdated() => return Ok(None),
            () = shown.signals.next() => return Ok(Some(Exit::Interrupted)),
        }
    }
    let exit = match found {
        Found::Run(run) => {
            let run = engine.run(run).await?;
            if engine.is_outdated() {
                return Ok(None);
            }
            if args.format(json) == AttachFormat::Text {
                advise(&run);
            }
            exit_of(run.status)
        }
        Found::Session(_) => Exit::Done,
    };
    shown.output.end()?;
    Ok(Some(exit))
}

/// How the last run of a session ended, once all of it has been shown and no further run waits.
async fn at_rest(engine: &Engine, session: &SessionId, follower: &Follower) -> anyhow::Result<Option<Exit>> {
    let session = engine.session(session).await?;
    let is_at_rest = session.execution == Execution::Idle && follower.cursor() >= session.last_seq;
    Ok(is_at_rest.then(|| session.last_outcome.map_or(Exit::Done, exit_of)))
}

//! Commands that only read: they open the database read-only, so that they leave nothing behind and need no permission to
//! write.

use std::io::Write;
use std::path::Path;

use super::exit::Exit;
use super::{Command, TokenCommand, agents, attach, backends, list, permissions, read_only, session};
use crate::config::Config;
use crate::engine::{Engine, READS_AT_MOST, StoreError};

impl Command {
    /// Whether it changes nothing. A listing with flags that change something counts as a change.
    pub(super) fn only_reads(&self) -> bool {
        match self {
            Self::Attach(_)
            | Self::Sessions(_)
            | Self::Runs(_)
            | Self::Messages(_)
            | Self::Agents
            | Self::Slots
            | Self::Workers
            | Self::Show(_) => true,
            Self::Backends(args) => args.command.is_none(),
            Self::Permissions(args) => args.answer.is_empty(),
            Self::Session(args) => !args.new && !args.reset && args.changes().next().is_none(),
            _ => false,
        }
    }

    /// Whether it changes the database, or files beside it.
    pub(super) fn writes(&self) -> bool {
        match self {
            Self::Doctor(_) | Self::Backup(_) | Self::Torture(_) => false,
            Self::Token(args) => matches!(args.command, Some(TokenCommand::Rotate)),
            command => !command.only_reads(),
        }
    }
}

/// Executes a command that only reads.
pub(super) async fn run(
    db: &Path,
    config: Config,
    command: &Command,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    if let Command::Attach(args) = command {
        return attach::run(db, &config, args, json).await;
    }
    // Printed only once it is known to be consistent.
    let (exit, printed) = again_while_outdated(db, &config, async |engine| {
        let mut out = Vec::new();
        let exit = match command {
            Command::Agents => agents::run(engine, json, &mut out).await,
            Command::Backends(args) => backends::run(engine, args, json, &mut out).await,
            Command::Permissions(args) => permissions::run(engine, args, json, &mut out).await,
            Command::Session(args) => session::run(engine, args, json, &mut out).await,
            listing => list::run(engine, listing, json, &mut out).await,
        };
        Ok((exit?, out))
    })
    .await?;
    out.write_all(&printed)?;
    out.flush()?;
    Ok(exit)
}

/// Opens the database for `read`, and again as long as a process wrote to it while it was read without locks.
async fn again_while_outdated<T>(
    db: &Path,
    config: &Config,
    read: impl AsyncFn(&Engine) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    for _ in 0..READS_AT_MOST {
        let engine = read_only::open(db, config).await?;
        let done = read(&engine).await;
        let is_outdated = engine.is_outdated();
        engine.close().await;
        if !is_outdated {
            return done;
        }
    }
    Err(StoreError::Changed(db.to_owned()).into())
}

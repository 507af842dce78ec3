//! `backup`: a copy of the database, made while it is in use.

use std::io::Write;
use std::path::Path;

use anyhow::Context;

use super::exit::Exit;
use super::signals::StopSignals;
use super::{BackupArgs, table};
use crate::engine;

pub(super) async fn run(db: &Path, args: &BackupArgs, as_json: bool, out: &mut impl Write) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::new()?;
    tokio::select! {
        backup = engine::back_up(db, &args.to) => {
            table::record(out, &backup.context("failed to back up")?, as_json)?;
            Ok(Exit::Done)
        }
        () = signals.next() => Ok(Exit::Interrupted),
    }
}

//! `token`: the path and the value of the token that `serve` creates if none is configured, and replacing it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use super::exit::{Exit, Usage};
use super::{TokenArgs, TokenCommand, deciding, table};
use crate::config::{AuthMode, Config};
use crate::engine::token_file;
use crate::http::token_file as file;

pub(super) async fn run(
    database: &Path,
    config: &Config,
    args: &TokenArgs,
    as_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let path = token_file(database)?;
    if config.server.auth == AuthMode::None {
        return Err(Usage("no token is needed: the config says auth = \"none\"".into()).into());
    }
    if config.server.names_token() {
        let problem =
            format!("the config names its own tokens, so that the one in {} counts for nothing", path.display());
        return Err(Usage(problem).into());
    }
    if matches!(args.command, Some(TokenCommand::Rotate)) {
        deciding::check().await?;
        let (database, path) = (database.to_owned(), path.clone());
        let rotated = tokio::task::spawn_blocking(move || file::rotate(&database, &path));
        rotated.await?.context("failed to make a new token")?;
    }
    // Read even if only the path is shown: it is better to learn now that a token cannot be read.
    let token = read(database.to_owned(), path.clone()).await?;
    let is_shown = matches!(args.command, Some(TokenCommand::Show));
    match (is_shown, as_json) {
        (true, true) => table::json(out, &json!({"path": path, "token": token.reveal()}))?,
        (false, true) => table::json(out, &json!({"path": path}))?,
        (true, false) => writeln!(out, "{}", token.reveal())?,
        (false, false) => writeln!(out, "{}", path.display())?,
    }
    Ok(Exit::Done)
}

async fn read(database: PathBuf, path: PathBuf) -> anyhow::Result<crate::config::Token> {
    let token = tokio::task::spawn_blocking(move || file::show(&database, &path)).await?;
    token.context("failed to read the token, which `mainstay serve` makes at its first start")
}

//! What the agent may do through its client: read and write files, and run commands in terminals, as its workspace allows.
//!
//! Always: only for a session with a turn, and only in the session's directory. A method that was not offered does not
//! exist.

mod files;
mod terminals;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use agent_client_protocol::{Error, UntypedMessage};
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(super) use self::terminals::Terminals;
use super::turn::Turn;
use crate::driver::relay::RelayedTurn;
use crate::process::launch::open_without_links;
use crate::workspace::ClientAccess;

/// The working directory of a session.
#[derive(Debug, Clone)]
pub(super) struct SessionDir {
    path: PathBuf,
    /// The directory was checked; a link that came into its path afterwards is not followed.
    has_no_links: bool,
}

impl SessionDir {
    /// The directory of a turn.
    pub(super) fn of(turn: &RelayedTurn) -> Self {
        Self { path: turn.dir.clone(), has_no_links: turn.options.cwd.is_some() }
    }

    fn open(&self) -> io::Result<OwnedFd> {
        if self.has_no_links {
            return Ok(open_without_links(&self.path)?);
        }
        Ok(std::fs::File::open(&self.path)?.into())
    }
}

/// The execution of a request.
type Work = BoxFuture<'static, Result<Value, Error>>;

/// The client's side of files and terminals.
pub(super) struct Client {
    access: ClientAccess,
}

impl Client {
    pub(super) fn new(access: ClientAccess) -> Self {
        Self { access }
    }

    /// What the agent is offered.
    pub(super) fn access(&self) -> ClientAccess {
        self.access
    }

    /// The execution of a request; none if its method is not offered.
    pub(super) fn work(&self, request: &UntypedMessage, turn: &Turn) -> Option<Work> {
        let ClientAccess { read_files, write_files, terminals } = self.access;
        let (held, dir) = (turn.terminals.clone(), turn.terminals.dir().to_owned());
        let params = request.params.clone();
        Some(match request.method.as_str() {
            "fs/read_text_file" if read_files => Box::pin(async move {
                let request = read(params)?;
                answer(blocking(move || files::read(&dir, &request)).await?)
            }),
            "fs/write_text_file" if write_files => Box::pin(async move {
                let request = read(params)?;
                answer(blocking(move || files::write(&dir, &request)).await?)
            }),
            "terminal/create" if terminals => Box::pin(async move { answer(held.create(read(params)?)?) }),
            "terminal/output" if terminals => Box::pin(async move { answer(held.output(&read(params)?)?) }),
            "terminal/wait_for_exit" if terminals => {
                Box::pin(async move { answer(held.wait_for_exit(&read(params)?).await?) })
            }
            "terminal/kill" if terminals => Box::pin(async move { answer(held.kill(&read(params)?)?) }),
            "terminal/release" if terminals => Box::pin(async move { answer(held.release(&read(params)?)?) }),
            _ => return None,
        })
    }
}

fn read<T: DeserializeOwned>(params: Value) -> Result<T, Error> {
    serde_json::from_value(params).map_err(|error| refused(error.to_string()))
}

fn answer(answer: impl Serialize) -> Result<Value, Error> {
    Ok(serde_json::to_value(answer)?)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    // Fails only when the runtime shuts down.
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(failed(error)))
}

/// The agent requested something that is not allowed or makes no sense.
fn refused(reason: impl Into<String>) -> Error {
    Error::invalid_params().data(reason.into())
}

/// The request could not be carried out.
fn failed(reason: impl std::fmt::Display) -> Error {
    Error::internal_error().data(reason.to_string())
}

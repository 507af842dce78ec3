//! Who may decide: no process that works for a run, whatever token it shows. An agent that asks is not the one that answers.

use std::io;
use std::net::SocketAddr;

use tokio::sync::Semaphore;

use crate::process::caller;
pub use crate::process::caller::{Peer, RunProcess};

/// Looks at `/proc` that are under way at once: people decide one thing at a time, and a flood of decisions is to wait for
/// itself.
static LOOKS: Semaphore = Semaphore::const_new(2);

/// Who is at the other end of a connection from `remote` to `local`, as far as `/proc` tells.
pub async fn of_connection(local: SocketAddr, remote: SocketAddr) -> Peer {
    let Ok(permit) = LOOKS.acquire().await else { return Peer::Unclear };
    let look = move || {
        // It lasts as long as the look, also where the request does not wait for that.
        let _permit = permit;
        caller::of_connection(local, remote)
    };
    // It fails only when the runtime goes down.
    tokio::task::spawn_blocking(look).await.unwrap_or(Peer::Unclear)
}

/// The run that this very process works for, if any.
///
/// # Errors
/// Why it cannot be told.
pub async fn of_self() -> io::Result<Option<RunProcess>> {
    tokio::task::spawn_blocking(caller::of_self).await.map_err(io::Error::other)?
}

//! Who may decide: no process that works for a run, whatever token it shows. An agent that asks must not answer itself.

use std::io;
use std::net::SocketAddr;

use tokio::sync::Semaphore;

use crate::process::caller;
pub use crate::process::caller::{Peer, RunProcess};

/// Concurrent lookups in `/proc`: people decide one thing at a time, and a flood of decisions is to delay only itself.
static LOOKS: Semaphore = Semaphore::const_new(2);

/// The process at the other end of a connection from `remote` to `local`, as far as `/proc` tells.
pub async fn of_connection(local: SocketAddr, remote: SocketAddr) -> Peer {
    let Ok(permit) = LOOKS.acquire().await else { return Peer::Unclear };
    let look = move || {
        // Held as long as the lookup runs, even if the request does not wait for it.
        let _permit = permit;
        caller::of_connection(local, remote)
    };
    // It fails only when the runtime goes down.
    tokio::task::spawn_blocking(look).await.unwrap_or(Peer::Unclear)
}

/// The run that this very process works for, if any.
///
/// # Errors
/// Why it cannot be determined.
pub async fn of_self() -> io::Result<Option<RunProcess>> {
    tokio::task::spawn_blocking(caller::of_self).await.map_err(io::Error::other)?
}

//! The bridge: a small process of this same program that owns one ACP agent for the agent's lifetime. It is the agent's
//! client, keeps its sessions, and takes the turns of relays, which connect over a Unix socket, to it.
//!
//! Always: it listens only after the agent answered `initialize`. It ends when the agent does, and the agent ends with
//! it. What it keeps of a session is bounded; if a relay does not read, the agent has to wait, as with a pipe.
//!
//! The crate `agent-client-protocol` is used nowhere else.
//! Proof: `tests/it/acp/mod.rs`.

mod agent;
mod attempt;
mod client;
mod content;
mod ending;
mod frames;
mod lost;
mod messages;
mod process;
mod session;
mod turn;

use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent_client_protocol::v1::ConnectionTo;
use agent_client_protocol::{Client, Lines, UntypedMessage, on_receive_notification, on_receive_request};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::agent::Bridge;
use self::ending::Ended;
pub(super) use self::ending::{is_shortage, why_it_ended};
pub use self::frames::{Frames, Heard};
use self::process::Process;
use super::wire;
use crate::failure::{AgentError, ErrorClass};
use crate::workspace::ClientAccess;

/// The argument that makes this program a bridge; the agent's command follows.
pub const COMMAND: &str = "bridge";

/// Agents were seen to take two seconds, on an otherwise idle machine.
const INITIALIZE_WITHIN: Duration = Duration::from_secs(50);
/// Turns and probes at the same time.
const MAX_RELAYS: usize = 256;
/// How soon an agent whose pipes broke must have ended; otherwise it closed them itself.
const END_IS_KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// How long the turns in progress may take to report the agent's end to their relays.
const FAREWELL: Duration = Duration::from_secs(2);
const MAX_SETUP_BYTES: u64 = 64 * 1024;

/// The settings that a bridge reads from its stdin, in one line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// Where to listen.
    pub socket: PathBuf,
    /// What the agent may do through its client.
    pub client: ClientAccess,
    /// A longer line of the agent is counted and skipped.
    pub max_line_bytes: usize,
}

/// The agent's command, if this program was started as a bridge.
pub fn asked_for(mut arguments: impl Iterator<Item = OsString>) -> Option<Vec<OsString>> {
    let is_bridge = arguments.nth(1).is_some_and(|word| word == COMMAND);
    let command: Vec<_> = arguments.collect();
    (is_bridge && !command.is_empty()).then_some(command)
}

/// Runs as a bridge, until its agent ends or SIGTERM arrives.
///
/// # Errors
/// The setup on stdin cannot be read, or the runtime cannot be built. Other failures are reported by the last line of
/// stderr and the exit code.
pub fn run(command: &[OsString]) -> io::Result<ExitCode> {
    let mut setup = String::new();
    io::stdin().lock().take(MAX_SETUP_BYTES).read_line(&mut setup)?;
    let setup: Setup = serde_json::from_str(&setup)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(hold(command, setup));
    // Blocking tasks do not delay the exit: they only work on files.
    runtime.shutdown_background();
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Ended { error, code }) => {
            // Fails if stderr is gone too, and then there is no other way to report it.
            let _ = writeln!(io::stderr(), "{}", ending::last_line(&error));
            Ok(code)
        }
    }
}

/// Starts the agent and serves it. Returns why it ended, unless the bridge was told to end.
async fn hold(command: &[OsString], setup: Setup) -> Result<(), Ended> {
    let mut term = signal(SignalKind::terminate()).map_err(|error| AgentError::from(error.to_string()))?;
    let (process, pipes) = Process::start(command).map_err(|error| ending::not_started(command, &error))?;
    let bridge = Arc::new(Bridge::new(setup.client, process.clone()));
    let heard = process::lines(pipes.stdout, setup.max_line_bytes, bridge.clone());
    let transport = Lines::new(process::line_sink(pipes.stdin), heard);
    let (asked, held) = (bridge.clone(), bridge.clone());
    let connection = Client
        .v1()
        .name("mainstay")
        .on_receive_request(
            async move |request: UntypedMessage, responder, connection: ConnectionTo<_>| {
                asked.requested(request, responder, &connection)
            },
            on_receive_request!(),
        )
        // Session updates were already taken out of the lines; other notifications are ignored.
        .on_receive_notification(async |_: UntypedMessage, _| Ok(()), on_receive_notification!())
        .connect_with(transport, async move |connection: ConnectionTo<_>| {
            Ok(serve(&held, connection, &setup.socket).await)
        });
    let served = tokio::select! {
        served = connection => served.unwrap_or_else(|error| Err(error.to_string().into())),
        _ = term.recv() => Ok(()),
    };
    let served = match served {
        // A broken pipe is the first sign of the agent's end; its exit status says more.
        Err(AgentError { message, class: None, .. }) => {
            let ended = timeout(END_IS_KNOWN_WITHIN, bridge.lost()).await;
            Err(AgentError::of(ErrorClass::Crashed, ended.unwrap_or(message)))
        }
        served => served,
    };
    // The connection is closed, and with it the agent's stdin.
    process.end().await;
    served.map_err(|error| bridge.quoting(error).into())
}

/// Serves relays until the agent ends or has to be ended.
async fn serve(
    bridge: &Arc<Bridge>,
    connection: ConnectionTo<agent_client_protocol::Agent>,
    socket: &Path,
) -> Result<(), AgentError> {
    let crashed = |reason: String| AgentError::of(ErrorClass::Crashed, reason);
    tokio::select! {
        connected = timeout(INITIALIZE_WITHIN, bridge.initialize(connection)) => {
            let silent = |_| crashed(format!("the agent did not answer initialize in {INITIALIZE_WITHIN:?}"));
            connected.map_err(silent)??;
        }
        reason = bridge.lost() => return Err(crashed(reason)),
    }
    let listener =
        listen(socket).map_err(|error| crashed(format!("failed to listen at {}: {error}", socket.display())))?;
    let mut relays = JoinSet::new();
    let reason = loop {
        tokio::select! {
            accepted = listener.accept(), if relays.len() < MAX_RELAYS => match accepted {
                Ok((stream, _)) => {
                    let bridge = bridge.clone();
                    relays.spawn(async move { bridge.relayed(stream).await });
                }
                // No file descriptors left: retry until some are freed.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = relays.join_next() => {}
            reason = bridge.lost() => break reason,
        }
    };
    drop(listener);
    // Each of them reports the same reason.
    let _ = timeout(FAREWELL, async { while relays.join_next().await.is_some() {} }).await;
    Err(crashed(reason))
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let (dir, name) = wire::open_dir_of(path)?;
    let short = wire::in_dir(&dir, name);
    let listener = UnixListener::bind(&short)?;
    std::fs::set_permissions(&short, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

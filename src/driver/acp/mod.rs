//! An agent that speaks ACP on its stdin and stdout, kept warm.
//!
//! The agent is owned by a bridge: a process of this same program that is the agent's ACP client, keeps many of its
//! sessions, and serves the relays of turns on a Unix socket. The conversation on the agent's pipes therefore survives
//! the end of an engine.

pub mod bridge;
mod parser;
pub(super) mod relay;
mod wire;

use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use self::bridge::Setup;
pub use self::parser::parser;
use self::wire::{Answer, Own, ToBridge};
use super::per_turn::{Dialect, PerTurn};
use super::relay::RelayedTurn;
use super::{Driver, ProbeError, Warm, WarmStart, backend};
use crate::agent::ProcessSpec;
use crate::failure::{AgentError, is_shortage};
use crate::permission::{Decision, PermissionRequest};
use crate::process::Shims;
use crate::process::launch::Stdin;
use crate::process::shim_client::ShimConfig;
use crate::process::{Adoption, Prompt, Reply, StartError, TurnPlace};
use crate::run::ExitReport;

/// The driver's name in the config and in the arguments of a relay.
const DRIVER: &str = "acp";
/// The bridge's socket, in the directory of its shim.
const SOCKET: &str = "bridge";
/// A bridge answers at once, whatever its agent does.
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// The driver of an agent.
#[derive(Debug)]
pub struct Acp {
    process: ProcessSpec,
    shared: bool,
    shim_config: ShimConfig,
}

impl Acp {
    /// A driver whose backends are started as `process` says: one for all sessions of a workspace if `shared`.
    pub fn new(process: &ProcessSpec, shared: bool, kill_grace: Duration, shims: &Shims) -> Self {
        let shim_config = ShimConfig { shims: shims.clone(), kill_grace, max_line_bytes: process.max_line_bytes };
        Self { process: process.clone(), shared, shim_config }
    }

    fn turns(&self) -> Result<PerTurn, StartError> {
        let ShimConfig { shims, kill_grace, max_line_bytes } = &self.shim_config;
        let spec = super::relay::process(shims, DRIVER, *max_line_bytes)?;
        let dialect = Dialect {
            stdin: |prompt| {
                let endpoint = prompt.place.endpoint.clone().unwrap_or_default();
                Stdin::Open(RelayedTurn::new(prompt, endpoint).to_line())
            },
            answer,
            ..Dialect::of_lines(parser)
        };
        Ok(PerTurn::new(spec, *kill_grace, dialect, shims.clone()))
    }

    async fn start_bridge(&self, start: WarmStart) -> Result<(Reply, String), StartError> {
        backend::look_for_program(&self.shim_config, &self.process, &start)?;
        let ShimConfig { shims, max_line_bytes, .. } = &self.shim_config;
        let socket = shims.dir_of(start.attempt).join(SOCKET);
        let socket = std::path::absolute(socket).map_err(|error| StartError::from(error.to_string()))?;
        let no_text = || StartError::from("the path of mainstay, or of its data, is no text");
        let endpoint = socket.to_str().ok_or_else(no_text)?.to_owned();
        let program = shims.program().to_str().ok_or_else(no_text)?.to_owned();
        let mut command = vec![program, bridge::COMMAND.to_owned()];
        command.extend(self.process.command.iter().cloned());
        let spec = ProcessSpec { command, ..self.process.clone() };
        let setup = Setup { socket, client: start.client, max_line_bytes: *max_line_bytes };
        let stdin = Stdin::Open(format!("{}\n", wire::line(&setup)));
        let reply = backend::start(&self.shim_config, &spec, Vec::new(), stdin, &start).await?;
        Ok((reply, endpoint))
    }
}

impl Driver for Acp {
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        Box::pin(async move { self.turns()?.prompt(prompt).await })
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Option<Reply>> {
        Box::pin(async move { self.turns().ok()?.adopt(adoption).await })
    }

    fn answer(&self, request: &PermissionRequest, decision: &Decision) -> Option<String> {
        answer(request, decision)
    }

    fn end_turn<'a>(&'a self, place: &'a TurnPlace) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async {
            let socket = Path::new(place.endpoint.as_deref().unwrap_or_default());
            let asked = ask(socket, &ToBridge::EndTurn(place.session.to_string()), &Own::Ended).await;
            asked.map_err(|error| error.message)
        })
    }

    fn warm(&self) -> Option<&dyn Warm> {
        Some(self)
    }
}

impl Warm for Acp {
    fn is_shared(&self) -> bool {
        self.shared
    }

    fn start(&self, start: WarmStart) -> BoxFuture<'_, Result<(Reply, String), StartError>> {
        Box::pin(self.start_bridge(start))
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Reply> {
        Box::pin(backend::adopt(&self.shim_config, adoption))
    }

    fn why_it_ended(&self, exit: &ExitReport) -> Option<AgentError> {
        bridge::why_it_ended(exit)
    }

    fn is_shortage(&self, exit: &ExitReport) -> bool {
        bridge::is_shortage(exit)
    }

    fn probe<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, Result<(), ProbeError>> {
        Box::pin(async move {
            let answer = tokio::time::timeout(PROBE_WITHIN, ping(Path::new(endpoint))).await;
            answer.unwrap_or_else(|_| Err("the bridge to the agent does not answer".into()))
        })
    }
}

fn answer(request: &PermissionRequest, decision: &Decision) -> Option<String> {
    let option = match decision {
        Decision::Selected(option) => Some(option.id.clone()),
        Decision::Cancelled => None,
    };
    Some(wire::line(&ToBridge::Answer(Answer { request: request.request.clone(), option })))
}

/// The bridge listens once the agent has answered `initialize`.
async fn ping(socket: &Path) -> Result<(), ProbeError> {
    ask(socket, &ToBridge::Ping, &Own::Ready).await
}

/// Sends the bridge a question that has one valid answer.
async fn ask(socket: &Path, question: &ToBridge, answer: &Own) -> Result<(), ProbeError> {
    let failed = |error: std::io::Error| ProbeError {
        message: format!("the bridge to the agent cannot be reached: {error}"),
        is_shortage: is_shortage(&error),
    };
    let mut stream = wire::connect(socket).await.map_err(failed)?;
    let line = format!("{}\n", wire::line(question));
    stream.write_all(line.as_bytes()).await.map_err(failed)?;
    let mut said = String::new();
    BufReader::new(stream.take(4096)).read_line(&mut said).await.map_err(failed)?;
    match serde_json::from_str::<Own>(&said) {
        Ok(said) if said == *answer => Ok(()),
        _ => Err("the bridge to the agent says something else, or nothing".into()),
    }
}

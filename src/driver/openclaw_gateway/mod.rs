//! A running OpenClaw gateway: a relay takes each turn to it over a WebSocket. Mainstay's slots correspond to the
//! gateway's agents: the gateway executes one run per agent at a time.
//!
//! Always: the gateway's token is passed in the first line on the relay's stdin, never in its arguments or its environment.

mod connection;
mod ending;
mod frames;
mod relay;

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use self::connection::Connection;
use super::relay::RelayedTurn;
use super::{Driver, probe};
use crate::agent::{DEFAULT_MAX_LINE_BYTES, GatewaySpec};
use crate::catalogue::Found;
use crate::failure::{AgentError, ErrorClass};
use crate::process::Shims;
use crate::process::launch::{Launch, Stdin};
use crate::process::output::OutputFormat;
use crate::process::shim_client::{Protocol, ShimConfig};
use crate::process::{Adoption, Prompt, Reply, StartError, TurnPlace, template};
use crate::run::Attempt;

pub use frames::parser;
pub(super) use relay::run as relay;

/// The driver's name, in the arguments of a relay.
const DRIVER: &str = "openclaw-gateway";

/// The engine or the shim ends a turn at its limit; the gateway's own limit is this much later.
const LATER: Duration = Duration::from_secs(30);

/// A driver whose turns are taken to a gateway.
#[derive(Debug, Clone)]
pub struct Gateway {
    spec: GatewaySpec,
    shim_config: ShimConfig,
}

/// A turn, as it is passed to its relay.
#[derive(Serialize, Deserialize)]
struct GatewayTurn {
    turn: RelayedTurn,
    /// The gateway's id of the run.
    key: String,
    /// The gateway's agent.
    agent: String,
    token: Option<String>,
    /// The gateway ends the run itself after this many seconds, if no process of Mainstay does.
    limit_s: u64,
}

/// Probes a gateway at its address.
///
/// # Errors
/// What is missing, for the operator.
pub(super) async fn look(spec: &GatewaySpec) -> Result<Found, String> {
    let connected = Connection::open(&spec.url, spec.token.as_deref());
    match timeout(probe::PROBE_TIMEOUT, connected).await {
        Ok(Ok(connection)) => {
            Ok(Found { at: spec.url.clone(), version: connection.version.as_deref().map(probe::shown) })
        }
        Ok(Err(refused)) => match refused.error() {
            AgentError { message, class: Some(ErrorClass::Authentication), .. } => {
                Err(format!("{message}; correct `token` of the agent"))
            }
            error => Err(error.message),
        },
        Err(_) => Err(format!("what listens at {} does not answer as an OpenClaw gateway does", spec.url)),
    }
}

impl Gateway {
    /// The gateway that `spec` describes. A cancelled turn has `kill_grace` to be confirmed.
    pub fn new(spec: &GatewaySpec, kill_grace: Duration, shims: &Shims) -> Self {
        let shim_config = ShimConfig { shims: shims.clone(), kill_grace, max_line_bytes: DEFAULT_MAX_LINE_BYTES };
        Self { spec: spec.clone(), shim_config }
    }

    fn protocol() -> Protocol {
        Protocol { format: OutputFormat::Lines(parser()), interrupt: None }
    }

    /// The gateway's agent for a turn.
    fn agent(&self, place: &TurnPlace, message: &str) -> Result<String, StartError> {
        let agent = template::fill(&self.spec.agent, place, message).into_string();
        agent.map_err(|_| StartError::from("`gateway_agent` is no text once it is filled in"))
    }

    async fn start(&self, prompt: Prompt) -> Result<Reply, StartError> {
        let turn = GatewayTurn {
            turn: RelayedTurn::new(&prompt, self.spec.url.clone()),
            key: key_of(prompt.place.attempt),
            agent: self.agent(&prompt.place, &prompt.message)?,
            token: self.spec.token.clone(),
            limit_s: (prompt.limit + LATER).as_secs(),
        };
        // Strings, numbers and maps of strings: they always serialise.
        let line = serde_json::to_string(&turn).unwrap_or_default() + "\n";
        let process = super::relay::process(&self.shim_config.shims, DRIVER, self.shim_config.max_line_bytes)?;
        let launch = Launch::for_turn(&process, Vec::new(), Stdin::Open(line), &prompt, self.shim_config.kill_grace)?;
        self.shim_config.start(launch, Self::protocol()).await
    }
}

/// The gateway's id of a run: each attempt is a run of its own there.
fn key_of(attempt: Attempt) -> String {
    format!("{}-{}", attempt.run, attempt.number)
}

/// The gateway's session of a conversation.
fn session_key_of(agent: &str, session: &str) -> String {
    format!("agent:{agent}:web:{session}")
}

impl Driver for Gateway {
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        Box::pin(self.start(prompt))
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Option<Reply>> {
        Box::pin(async { Some(self.shim_config.go_on(adoption, Self::protocol()).await) })
    }

    fn end_turn<'a>(&'a self, place: &'a TurnPlace) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async {
            // The message, which may be part of the agent's name, is no longer known here.
            let agent = self.agent(place, "").map_err(|error| error.message)?;
            let session_key = session_key_of(&agent, place.session.as_str());
            ending::end(&self.spec, &session_key, &key_of(place.attempt)).await
        })
    }
}

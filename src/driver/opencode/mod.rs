//! opencode: `opencode serve`, an HTTP server for the sessions of a workspace, kept warm. The relay of a turn prompts
//! one of its sessions and follows its events.
//!
//! Always: the server listens only on 127.0.0.1, at a port chosen here, and requires the password generated for it:
//! other users of the machine must not control it.

mod error;
mod own;
mod parser;
mod prompt;
pub(super) mod relay;
mod server;
mod speech;
mod tools;
mod trouble;
mod watch;

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use self::server::{Failure, Server};
use super::per_turn::{Dialect, PerTurn};
use super::relay::RelayedTurn;
use super::{Driver, ProbeError, Warm, WarmStart, backend};
use crate::agent::ProcessSpec;
use crate::permission::{Decision, PermissionRequest};
use crate::process::Shims;
use crate::process::launch::Stdin;
use crate::process::shim_client::ShimConfig;
use crate::process::{Adoption, Prompt, Reply, StartError, TurnPlace};

pub use parser::parser;

/// A healthy server answers at once; one that is starting accepts connections, and never answers them.
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// The driver of an agent.
#[derive(Debug)]
pub struct Opencode {
    turns: Result<PerTurn, StartError>,
    spec: ProcessSpec,
    shim_config: ShimConfig,
}

impl Opencode {
    /// A driver whose servers are started as `process` says, with the arguments for a server appended.
    pub fn new(process: &ProcessSpec, kill_grace: Duration, shims: &Shims) -> Self {
        let relay = super::relay::process(shims, "opencode", process.max_line_bytes);
        let dialect = Dialect { stdin: turn_of, answer, ..Dialect::of_lines(parser) };
        Self {
            turns: relay.map(|relay| PerTurn::new(relay, kill_grace, dialect, shims.clone())),
            spec: process.clone(),
            shim_config: ShimConfig { shims: shims.clone(), kill_grace, max_line_bytes: process.max_line_bytes },
        }
    }

    async fn start_server(&self, start: WarmStart) -> Result<(Reply, String), StartError> {
        let port = free_port().map_err(|error| StartError::at("no port is free for it", &error))?;
        let password = uuid::Uuid::new_v4().simple().to_string();
        let mut spec = self.spec.clone();
        spec.env.insert("OPENCODE_SERVER_USERNAME".to_owned(), server::USER.to_owned());
        spec.env.insert("OPENCODE_SERVER_PASSWORD".to_owned(), password.clone());
        let port_word = port.to_string();
        let arguments = ["serve", "--port", &port_word, "--hostname", "127.0.0.1"].map(Into::into).to_vec();
        let reply = backend::start(&self.shim_config, &spec, arguments, Stdin::Closed, &start).await?;
        Ok((reply, format!("http://{}:{password}@127.0.0.1:{port}", server::USER)))
    }
}

impl Driver for Opencode {
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        match &self.turns {
            Ok(_) if prompt.place.endpoint.is_none() => {
                Box::pin(async { Err(StartError::from("no opencode server runs for the workspace")) })
            }
            Ok(turns) => turns.prompt(prompt),
            Err(error) => Box::pin(async { Err(error.clone()) }),
        }
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Option<Reply>> {
        match &self.turns {
            Ok(turns) => turns.adopt(adoption),
            Err(_) => Box::pin(async { None }),
        }
    }

    fn answer(&self, request: &PermissionRequest, decision: &Decision) -> Option<String> {
        answer(request, decision)
    }

    fn end_turn<'a>(&'a self, place: &'a TurnPlace) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async {
            let endpoint = place.endpoint.as_deref().unwrap_or_default();
            let server = Server::at(endpoint)?.in_directory(&place.dir.to_string_lossy());
            relay::end_turn(&server, place.agent_session.as_deref()).await.map_err(|trouble| trouble.message)
        })
    }

    fn warm(&self) -> Option<&dyn Warm> {
        Some(self)
    }
}

impl Warm for Opencode {
    fn is_shared(&self) -> bool {
        true
    }

    fn start(&self, start: WarmStart) -> BoxFuture<'_, Result<(Reply, String), StartError>> {
        Box::pin(self.start_server(start))
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Reply> {
        Box::pin(backend::adopt(&self.shim_config, adoption))
    }

    fn probe<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, Result<(), ProbeError>> {
        Box::pin(async move {
            let health = Server::at(endpoint)?.get("/global/health", PROBE_WITHIN).await;
            let failed = |failure: Failure| {
                let is_shortage = matches!(&failure, Failure::Broken(error) if error.is_shortage);
                ProbeError { message: failure.to_string(), is_shortage }
            };
            match health.map_err(failed)?.get("healthy") {
                Some(Value::Bool(true)) => Ok(()),
                _ => Err("what answers is no opencode server, or is not well".into()),
            }
        })
    }
}

/// The turn, as the first line for the relay.
fn turn_of(prompt: &Prompt) -> Stdin {
    Stdin::Open(RelayedTurn::new(prompt, prompt.place.endpoint.clone().unwrap_or_default()).to_line())
}

fn answer(request: &PermissionRequest, decision: &Decision) -> Option<String> {
    let reply = match decision {
        Decision::Selected(option) => option.id.as_str(),
        Decision::Cancelled => "reject",
    };
    Some(json!({"permission": request.request, "reply": reply}).to_string())
}

/// A free port. Another process may take it before the server does; then the server ends, and is restarted with another
/// port.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

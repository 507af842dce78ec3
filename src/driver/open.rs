//! Maps agents to drivers: the only file that knows all drivers.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};

use super::per_turn::{Dialect, PerTurn};
use super::relay::pipes::{Input, Output};
use super::{Driver, acp, claude, codex, demo, openclaw, openclaw_gateway, opencode, probe};
use crate::agent::{Agent, DriverConfig};
use crate::catalogue::{Found, KnownAgent};
use crate::process::Shims;

/// The driver of an agent. A new driver adds one line here.
pub fn open(agent: &Agent, shims: &Shims) -> Arc<dyn Driver> {
    match &agent.driver {
        DriverConfig::Demo => demo::backend(agent.kill_grace, shims),
        DriverConfig::Openclaw(spec) => {
            let dialect = Dialect { says_end: false, ..Dialect::of_lines(openclaw::parser) };
            Arc::new(PerTurn::new(spec.clone(), agent.kill_grace, dialect, shims.clone()))
        }
        DriverConfig::Text(spec) => {
            Arc::new(PerTurn::new(spec.clone(), agent.kill_grace, Dialect::of_text(), shims.clone()))
        }
        DriverConfig::Claude(spec) => Arc::new(claude::backend(spec, agent.kill_grace, shims)),
        DriverConfig::Codex(spec) => Arc::new(codex::backend(spec, agent.kill_grace, shims)),
        DriverConfig::Acp { process, shared } => Arc::new(acp::Acp::new(process, *shared, agent.kill_grace, shims)),
        DriverConfig::Opencode(spec) => Arc::new(opencode::Opencode::new(spec, agent.kill_grace, shims)),
        DriverConfig::OpenclawGateway(spec) => Arc::new(openclaw_gateway::Gateway::new(spec, agent.kill_grace, shims)),
    }
}

/// Probes an agent that is to work in a directory. After `until` its program is searched for but not started.
///
/// # Errors
/// What is missing, for the operator.
pub async fn look(driver: &DriverConfig, dir: &Path, until: Instant) -> Result<Found, String> {
    match driver {
        DriverConfig::Demo => {
            Ok(Found { at: "built in".to_owned(), version: Some(env!("CARGO_PKG_VERSION").to_owned()) })
        }
        DriverConfig::OpenclawGateway(spec) => openclaw_gateway::look(spec).await,
        // A custom command need not know `--version`: it could take that for a message and begin to work.
        DriverConfig::Openclaw(spec) | DriverConfig::Text(spec) => {
            let is_known = spec.command.first().is_some_and(|program| KnownAgent::of_program(program).is_some());
            probe::look(spec, dir, is_known, until).await
        }
        DriverConfig::Claude(spec)
        | DriverConfig::Codex(spec)
        | DriverConfig::Opencode(spec)
        | DriverConfig::Acp { process: spec, .. } => probe::look(spec, dir, true, until).await,
    }
}

/// Runs as a relay until its turn is over.
///
/// # Errors
/// The turn cannot be taken to the backend at all.
pub fn relay(driver: &str) -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        // First of all: from here on SIGTERM cancels the turn instead of ending this process.
        let term = signal(SignalKind::terminate())?;
        let (input, output) = (Input::of_stdin()?, Output::of_stdout()?);
        match driver {
            "acp" => acp::relay::run(input, output, term).await,
            "opencode" => opencode::relay::run(input, output, term).await,
            "openclaw-gateway" => openclaw_gateway::relay(input, output, term).await,
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, format!("no turns are relayed for {driver}"))),
        }
    });
    // A DNS lookup may still be running in a thread.
    runtime.shutdown_background();
    code
}

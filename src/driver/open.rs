//! Which driver reaches which agent: the only file that knows them all.

use std::sync::Arc;

use super::per_turn::{Dialect, PerTurn};
use super::{Backend, acp, claude, codex, demo, openclaw, openclaw_gateway, opencode};
use crate::agent::{Agent, Driver};
use crate::process::Hosts;

/// The backend of an agent: the one line that a new driver adds.
pub fn open(agent: &Agent, hosts: &Hosts) -> Arc<dyn Backend> {
    match &agent.driver {
        Driver::Demo => demo::backend(agent.kill_grace, hosts),
        Driver::Openclaw(spec) => {
            let dialect = Dialect { says_end: false, ..Dialect::of_lines(openclaw::parser) };
            Arc::new(PerTurn::new(spec.clone(), agent.kill_grace, dialect, hosts.clone()))
        }
        Driver::Text(spec) => Arc::new(PerTurn::new(spec.clone(), agent.kill_grace, Dialect::of_text(), hosts.clone())),
        Driver::Claude(spec) => Arc::new(claude::backend(spec, agent.kill_grace, hosts)),
        Driver::Codex(spec) => Arc::new(codex::backend(spec, agent.kill_grace, hosts)),
        Driver::Acp { process, shared } => Arc::new(acp::Acp::new(process, *shared, agent.kill_grace, hosts)),
        Driver::Opencode(spec) => Arc::new(opencode::Opencode::new(spec, agent.kill_grace, hosts)),
        Driver::OpenclawGateway(spec) => Arc::new(openclaw_gateway::Gateway::new(spec, agent.kill_grace, hosts)),
    }
}

//! An agent that speaks ACP on its stdin and stdout, kept warm.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::per_turn::{Dialect, PerTurn};
use super::process::Hosts;
use super::{Adoption, Backend, Prompt, Reply, StartError};
use crate::agent::ProcessSpec;

/// The backend of an agent.
#[derive(Debug)]
pub struct Acp {
    turns: PerTurn,
}

impl Acp {
    /// A backend whose live agents are started as `process` says.
    pub fn new(process: &ProcessSpec, _shared: bool, kill_grace: Duration, hosts: &Hosts) -> Self {
        Self {
            turns: PerTurn::new(process.clone(), kill_grace, Dialect::of_lines(super::openclaw::parser), hosts.clone()),
        }
    }
}

impl Backend for Acp {
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        self.turns.prompt(prompt)
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Option<Reply>> {
        self.turns.adopt(adoption)
    }
}

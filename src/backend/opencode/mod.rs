//! `opencode serve`: an HTTP server for the sessions of a workspace, kept warm.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::per_turn::{Dialect, PerTurn};
use super::process::Hosts;
use super::{Adoption, Backend, Prompt, Reply, StartError};
use crate::agent::ProcessSpec;

/// The backend of an agent.
#[derive(Debug)]
pub struct Opencode {
    turns: PerTurn,
}

impl Opencode {
    /// A backend whose live agents are started as `process` says.
    pub fn new(process: &ProcessSpec, kill_grace: Duration, hosts: &Hosts) -> Self {
        Self {
            turns: PerTurn::new(process.clone(), kill_grace, Dialect::of_lines(super::openclaw::parser), hosts.clone()),
        }
    }
}

impl Backend for Opencode {
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        self.turns.prompt(prompt)
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Option<Reply>> {
        self.turns.adopt(adoption)
    }
}

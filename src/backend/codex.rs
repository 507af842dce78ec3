//! Codex: `codex exec --json`, a process a turn.

use std::time::Duration;

use super::per_turn::{Dialect, PerTurn};
use super::process::Hosts;
use crate::agent::ProcessSpec;

/// The backend of an agent.
pub fn backend(spec: &ProcessSpec, kill_grace: Duration, hosts: &Hosts) -> PerTurn {
    PerTurn::new(spec.clone(), kill_grace, Dialect::of_lines(super::openclaw::parser), hosts.clone())
}

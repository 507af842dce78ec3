//! A running OpenClaw gateway: a relay takes each turn to it over a WebSocket.

use std::time::Duration;

use super::per_turn::{Dialect, PerTurn};
use super::process::Hosts;
use crate::agent::{DEFAULT_MAX_LINE_BYTES, GatewaySpec, ProcessSpec};

/// The backend of an agent.
pub fn backend(spec: &GatewaySpec, kill_grace: Duration, hosts: &Hosts) -> PerTurn {
    PerTurn::new(
        ProcessSpec {
            command: vec![spec.url.clone()],
            env: Default::default(),
            max_line_bytes: DEFAULT_MAX_LINE_BYTES,
        },
        kill_grace,
        Dialect::of_lines(super::openclaw::parser),
        hosts.clone(),
    )
}

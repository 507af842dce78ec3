//! One process a turn, under a shim: what is started for a prompt, what its lines mean, and what is written to its stdin.

use std::ffi::OsString;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Driver;
use crate::agent::ProcessSpec;
use crate::agent_event::LineParser;
use crate::permission::{Decision, PermissionRequest};
use crate::process::Shims;
use crate::process::launch::Launch;
pub use crate::process::launch::Stdin;
use crate::process::output::OutputFormat;
use crate::process::shim_client::{Protocol, ShimConfig};
use crate::process::{Adoption, Prompt, Reply, StartError};

/// What an agent writes to its stdout.
#[derive(Debug, Clone, Copy)]
pub enum Stdout {
    /// Lines of its protocol, with what reads those of a turn.
    Lines(fn() -> LineParser),
    /// The answer itself.
    Text,
}

/// How a kind of agent is spoken to.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// Arguments behind those of the config.
    pub arguments: fn(&Prompt) -> Vec<OsString>,
    /// What it reads on its stdin.
    pub stdin: fn(&Prompt) -> Stdin,
    /// What it writes to its stdout.
    pub stdout: Stdout,
    /// What is written to its stdin to stop a turn, before it is sent SIGTERM.
    pub interrupt: Option<fn() -> String>,
    /// As [`Driver::answer`].
    pub answer: fn(&PermissionRequest, &Decision) -> Option<String>,
    /// As [`Driver::is_session_gone`].
    pub is_session_gone: fn(&str, &str) -> bool,
    /// Variables that it is started with, unless the config sets them.
    pub environment: &'static [(&'static str, &'static str)],
    /// As [`Driver::says_end`].
    pub says_end: bool,
}

impl Dialect {
    /// An agent that is given its message in an argument, or else on its stdin, and that asks nothing.
    pub fn of_lines(parser: fn() -> LineParser) -> Self {
        Self {
            arguments: |_| Vec::new(),
            stdin: |_| Stdin::MessageUnlessAsked,
            stdout: Stdout::Lines(parser),
            interrupt: None,
            answer: |_, _| None,
            is_session_gone: |_, _| false,
            environment: &[],
            says_end: true,
        }
    }

    /// A command whose output is the answer; it is given its message likewise.
    pub fn of_text() -> Self {
        Self { stdout: Stdout::Text, says_end: false, ..Self::of_lines(|| Box::new(|_| None)) }
    }
}

/// A backend that starts one process per turn.
#[derive(Debug, Clone)]
pub struct PerTurn {
    spec: ProcessSpec,
    dialect: Dialect,
    shim_config: ShimConfig,
}

impl PerTurn {
    /// A backend that starts `spec` for each turn, under one of `shims`. A cancelled turn has `kill_grace` between SIGTERM
    /// and SIGKILL.
    pub fn new(spec: ProcessSpec, kill_grace: Duration, dialect: Dialect, shims: Shims) -> Self {
        let shim_config = ShimConfig { shims, kill_grace, max_line_bytes: spec.max_line_bytes };
        Self { spec, dialect, shim_config }
    }

    fn protocol(&self) -> Protocol {
        let format = match self.dialect.stdout {
            Stdout::Lines(parser) => OutputFormat::Lines(parser()),
            Stdout::Text => OutputFormat::Text,
        };
        Protocol { format, interrupt: self.dialect.interrupt.map(|line| line()) }
    }

    async fn start(&self, prompt: Prompt) -> Result<Reply, StartError> {
        let (more, stdin) = ((self.dialect.arguments)(&prompt), (self.dialect.stdin)(&prompt));
        let mut spec = self.spec.clone();
        for (name, value) in self.dialect.environment {
            spec.env.entry((*name).to_owned()).or_insert_with(|| (*value).to_owned());
        }
        let launch = Launch::for_turn(&spec, more, stdin, &prompt, self.shim_config.kill_grace)?;
        self.shim_config.start(launch, self.protocol()).await
    }
}

impl Driver for PerTurn {
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        Box::pin(self.start(prompt))
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Option<Reply>> {
        Box::pin(async { Some(self.shim_config.go_on(adoption, self.protocol()).await) })
    }

    fn answer(&self, request: &PermissionRequest, decision: &Decision) -> Option<String> {
        (self.dialect.answer)(request, decision)
    }

    fn is_session_gone(&self, stderr: &str, session: &str) -> bool {
        (self.dialect.is_session_gone)(stderr, session)
    }

    fn says_end(&self) -> bool {
        self.dialect.says_end
    }
}

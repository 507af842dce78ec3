//! Drivers that start one process per turn, under a shim: its arguments, the parser of its output, and its stdin.

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

/// The format of an agent's stdout.
#[derive(Debug, Clone, Copy)]
pub enum Stdout {
    /// Lines of its protocol, with the constructor of a turn's parser.
    Lines(fn() -> LineParser),
    /// The text of the answer.
    Text,
}

/// The protocol of one kind of agent.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// Arguments appended to those of the config.
    pub arguments: fn(&Prompt) -> Vec<OsString>,
    /// What it reads on its stdin.
    pub stdin: fn(&Prompt) -> Stdin,
    /// What it writes to its stdout.
    pub stdout: Stdout,
    /// The line written to its stdin to stop a turn, before SIGTERM is sent.
    pub interrupt: Option<fn() -> String>,
    /// Implements [`Driver::answer`].
    pub answer: fn(&PermissionRequest, &Decision) -> Option<String>,
    /// Implements [`Driver::is_session_gone`].
    pub is_session_gone: fn(&str, &str) -> bool,
    /// Environment variables that it gets unless the config sets them.
    pub environment: &'static [(&'static str, &'static str)],
    /// Implements [`Driver::says_end`].
    pub says_end: bool,
}

impl Dialect {
    /// An agent that takes its message in an argument or on its stdin, and that asks nothing.
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

    /// A command whose output is the answer; it takes its message likewise.
    pub fn of_text() -> Self {
        Self { stdout: Stdout::Text, says_end: false, ..Self::of_lines(|| Box::new(|_| None)) }
    }
}

/// A driver that starts one process per turn.
#[derive(Debug, Clone)]
pub struct PerTurn {
    spec: ProcessSpec,
    dialect: Dialect,
    shim_config: ShimConfig,
}

impl PerTurn {
    /// A driver that starts `spec` for each turn, under one of `shims`. A cancelled turn has `kill_grace` between
    /// SIGTERM and SIGKILL.
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

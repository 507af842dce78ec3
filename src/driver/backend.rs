//! The process of a backend, under a shim of its own: how it is started, and how another engine adopts it.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use super::WarmStart;
use crate::agent::ProcessSpec;
use crate::id::SessionId;
use crate::options::SessionOptions;
use crate::policy::OptionRules;
use crate::process::Shims;
use crate::process::launch::{Launch, Stdin};
use crate::process::shim_client::{Protocol, ShimConfig};
use crate::process::{Adoption, Prompt, Reply, StartError, TurnPlace};

/// A shim starts the process at once or not at all.
const START_WITHIN: Duration = Duration::from_secs(30);

/// A backend that is a process under a shim, for programs with a driver of their own.
#[derive(Debug, Clone)]
pub struct BackendProcess {
    spec: ProcessSpec,
    shim_config: ShimConfig,
}

impl BackendProcess {
    /// A process that is started as `spec` says, under one of `shims`. When it is stopped, it has `kill_grace` between
    /// SIGTERM and SIGKILL.
    pub fn new(spec: ProcessSpec, kill_grace: Duration, shims: Shims) -> Self {
        let shim_config = ShimConfig { shims, kill_grace, max_line_bytes: spec.max_line_bytes };
        Self { spec, shim_config }
    }

    /// Prepares the start of the process, with `more` arguments.
    ///
    /// # Errors
    /// [`StartError`] if it could not be started; then nothing of it is left.
    pub async fn start(&self, begin: &WarmStart, more: Vec<OsString>) -> Result<Reply, StartError> {
        start(&self.shim_config, &self.spec, more, Stdin::Closed, begin).await
    }

    /// Continues with a process that another engine started.
    pub async fn adopt(&self, adoption: Adoption) -> Reply {
        adopt(&self.shim_config, adoption).await
    }
}

/// Prepares the start of `spec` with `more` arguments.
///
/// # Errors
/// [`StartError`] if it could not be started; then nothing of it is left.
pub(super) async fn start(
    shim_config: &ShimConfig,
    spec: &ProcessSpec,
    more: Vec<OsString>,
    stdin: Stdin,
    start: &WarmStart,
) -> Result<Reply, StartError> {
    let prompt = prompt_of(start)?;
    let launch = Launch::for_turn(spec, more, stdin, &prompt, shim_config.kill_grace)?.kept_warm(start.alone);
    shim_config.start(launch, Protocol::nothing()).await
}

/// Searches for the program of an agent that another process (the bridge) will start.
///
/// # Errors
/// What is wrong with it, or missing.
pub(super) fn look_for_program(
    shim_config: &ShimConfig,
    spec: &ProcessSpec,
    start: &WarmStart,
) -> Result<(), StartError> {
    let prompt = prompt_of(start)?;
    Launch::for_turn(spec, Vec::new(), Stdin::Closed, &prompt, shim_config.kill_grace)?.look_for_program()
}

/// Continues with a process that another engine started.
pub(super) async fn adopt(shim_config: &ShimConfig, adoption: Adoption) -> Reply {
    shim_config.go_on(adoption, Protocol::nothing()).await
}

/// The values for the placeholders of its command. A shared backend has no session and uses the workspace's name instead.
fn prompt_of(start: &WarmStart) -> Result<Prompt, StartError> {
    let shared = || start.workspace.as_str().parse::<SessionId>().map_err(|error| StartError::from(error.to_string()));
    Ok(Prompt {
        place: TurnPlace {
            attempt: start.attempt,
            session: start.session.clone().map_or_else(shared, Ok)?,
            slot: start.workspace.to_string(),
            workspace: start.workspace.clone(),
            dir: start.dir.clone(),
            agent_session: None,
            endpoint: None,
        },
        message: String::new(),
        attachments: Vec::new(),
        options: SessionOptions::default(),
        rules: OptionRules::default(),
        oneshot: false,
        start_by: Instant::now() + START_WITHIN,
        limit: Duration::MAX,
    })
}

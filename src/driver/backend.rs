//! The process of a live agent that is kept warm, under a shim of its own: how it is started, and gone on with by another
//! engine.

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

/// A shim is started at once, or not at all.
const START_WITHIN: Duration = Duration::from_secs(30);

/// A live agent that is a process under a shim, for a program that brings a backend of its own.
#[derive(Debug, Clone)]
pub struct BackendProcess {
    spec: ProcessSpec,
    shim_config: ShimConfig,
}

impl BackendProcess {
    /// One that is started as `spec` says, under one of `shims`. When it is asked to end, it has `kill_grace` between
    /// SIGTERM and SIGKILL.
    pub fn new(spec: ProcessSpec, kill_grace: Duration, shims: Shims) -> Self {
        let shim_config = ShimConfig { shims, kill_grace, max_line_bytes: spec.max_line_bytes };
        Self { spec, shim_config }
    }

    /// Makes ready to start it, with `more` arguments.
    ///
    /// # Errors
    /// [`StartError`] when it could not be started; then nothing of it is left.
    pub async fn start(&self, begin: &WarmStart, more: Vec<OsString>) -> Result<Reply, StartError> {
        start(&self.shim_config, &self.spec, more, Stdin::Closed, begin).await
    }

    /// Goes on with one that another engine started.
    pub async fn adopt(&self, adoption: Adoption) -> Reply {
        adopt(&self.shim_config, adoption).await
    }
}

/// Makes ready to start `spec` with `more` arguments.
///
/// # Errors
/// [`StartError`] when it could not be started; then nothing of it is left.
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

/// Looks for the program of an agent that another process starts in our place.
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

/// Goes on with one that another engine started.
pub(super) async fn adopt(shim_config: &ShimConfig, adoption: Adoption) -> Reply {
    shim_config.go_on(adoption, Protocol::nothing()).await
}

/// What fills the placeholders of its command: one that is shared has no session, and the workspace's name in its place.
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

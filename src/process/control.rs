//! How an engine controls a running agent: begin, write to its stdin, stop, kill, leave.
//!
//! Always: a repeated request changes nothing; the first cause of a stop is kept.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::run::Cause;

/// Lines that may wait to be written to an agent; answers to its requests are few.
const INPUTS_WAITING: usize = 16;

/// How long a line may wait to be taken. It is taken at once unless the shim is paused (SIGSTOP).
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// What is written to an agent's stdin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// A line, with its end.
    Line(Bytes),
    /// Nothing more.
    Close,
}

/// Handle shared by the engine and the shim client.
#[derive(Debug, Clone)]
pub struct Control {
    input: mpsc::Sender<Input>,
    inputs: Arc<Mutex<Option<mpsc::Receiver<Input>>>>,
    begin: CancellationToken,
    ask: CancellationToken,
    kill: CancellationToken,
    leave: CancellationToken,
    caught_up: CancellationToken,
    cause: Arc<OnceLock<Cause>>,
}

impl Default for Control {
    fn default() -> Self {
        let (input, inputs) = mpsc::channel(INPUTS_WAITING);
        Self {
            input,
            inputs: Arc::new(Mutex::new(Some(inputs))),
            begin: CancellationToken::new(),
            ask: CancellationToken::new(),
            kill: CancellationToken::new(),
            leave: CancellationToken::new(),
            caught_up: CancellationToken::new(),
            cause: Arc::default(),
        }
    }
}

impl Control {
    /// Writes a line to its stdin, if that is open. Returns whether it was passed on: not if the agent is gone, or if
    /// its shim takes nothing for a second.
    pub async fn write(&self, line: &str) -> bool {
        self.pass_on(Input::Line(format!("{line}\n").into())).await
    }

    /// Closes its stdin; nothing can be written afterwards. Returns the same as [`Control::write`].
    pub async fn close_input(&self) -> bool {
        self.pass_on(Input::Close).await
    }

    async fn pass_on(&self, input: Input) -> bool {
        self.input.send_timeout(input, TAKEN_WITHIN).await.is_ok()
    }

    /// The receiver of the input; only the first call gets it.
    pub(crate) fn inputs(&self) -> Option<mpsc::Receiver<Input>> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lets the agent start: its shim is stored, so that another worker can find it.
    pub fn begin(&self) {
        self.begin.cancel();
    }

    /// Requests a stop and returns at once: first in the agent's own protocol, then SIGTERM, then SIGKILL after the
    /// agent's grace.
    pub fn stop(&self, cause: Cause) {
        // Only the first cause is kept.
        let _ = self.cause.set(cause);
        self.ask.cancel();
    }

    /// Ends it at once, without grace.
    pub fn kill(&self, cause: Cause) {
        // As above.
        let _ = self.cause.set(cause);
        self.kill.cancel();
    }

    /// Detaches from the agent and leaves it running for the next worker. An agent without a shim is killed.
    pub fn leave(&self) {
        self.leave.cancel();
    }

    /// The cause of the first stop request, if any.
    pub fn cause(&self) -> Option<Cause> {
        self.cause.get().copied()
    }

    /// Whether it is to be killed without grace.
    pub fn is_killed(&self) -> bool {
        self.kill.is_cancelled()
    }

    /// Waits until everything that the agent wrote before its adoption is read. May wait forever if its shim is gone:
    /// the end of the agent follows then.
    pub async fn caught_up(&self) {
        self.caught_up.cancelled().await;
    }

    pub(crate) fn has_caught_up(&self) {
        self.caught_up.cancel();
    }

    pub(crate) async fn begun(&self) {
        self.begin.cancelled().await;
    }

    pub(crate) async fn asked(&self) {
        self.ask.cancelled().await;
    }

    pub(crate) async fn killed(&self) {
        self.kill.cancelled().await;
    }

    pub(crate) async fn left(&self) {
        self.leave.cancelled().await;
    }
}

//! How an engine steers an agent that answers: begin, write to its stdin, stop, kill, leave.
//!
//! Always: asking again changes nothing; the first reason to stop is kept.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::run::Cause;

/// Lines that wait to be written to an agent; answers to its requests are few.
const INPUTS_WAITING: usize = 16;

/// A line is taken at once, unless the process that holds the agent is stopped.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// What is written to an agent's stdin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// A line, with its end.
    Line(Bytes),
    /// Nothing more.
    Close,
}

/// The engine's side and the backend's side share it.
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
    /// Writes a line to its stdin, if that is open. Whether it was passed on: it is not when the agent is gone, or when what
    /// holds it takes nothing for a while.
    pub async fn write(&self, line: &str) -> bool {
        self.pass_on(Input::Line(format!("{line}\n").into())).await
    }

    /// Closes its stdin: nothing more is written. As [`Control::write`].
    pub async fn close_input(&self) -> bool {
        self.pass_on(Input::Close).await
    }

    async fn pass_on(&self, input: Input) -> bool {
        self.input.send_timeout(input, TAKEN_WITHIN).await.is_ok()
    }

    /// What is to be written, for the one who writes it.
    pub(crate) fn inputs(&self) -> Option<mpsc::Receiver<Input>> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lets it begin: whoever comes after us will find it.
    pub fn begin(&self) {
        self.begin.cancel();
    }

    /// Asks it to stop: in its own protocol, then SIGTERM, then after the agent's grace SIGKILL. Goes on by itself.
    pub fn stop(&self, cause: Cause) {
        // A second reason is no reason.
        let _ = self.cause.set(cause);
        self.ask.cancel();
    }

    /// Ends it at once, without grace.
    pub fn kill(&self, cause: Cause) {
        // As above.
        let _ = self.cause.set(cause);
        self.kill.cancel();
    }

    /// Leaves it to whoever comes next. An agent that ends with its engine is killed.
    pub fn leave(&self) {
        self.leave.cancel();
    }

    /// Why it was first asked to stop, if it was.
    pub fn cause(&self) -> Option<Cause> {
        self.cause.get().copied()
    }

    /// Whether it is to end at once.
    pub fn is_killed(&self) -> bool {
        self.kill.is_cancelled()
    }

    /// Waits until all is read that it had said when it was adopted. For ever with one whose shim is gone: its end follows.
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

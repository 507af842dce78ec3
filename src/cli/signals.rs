//! The signals that ask a process to stop: SIGINT (Ctrl-C), SIGTERM, and SIGHUP, when the terminal is closed; and the one
//! that asks a daemon to hand over.

use anyhow::Context;
use procfs::process::Process;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// All of them, from the moment it is made.
pub(super) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// Without it a closed terminal would end `run` before it can end its agent. None under `nohup`.
    hangup: Option<Signal>,
}

impl StopSignals {
    pub(super) fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("failed to listen for signals");
        let hangup = if ignores_hangup() { None } else { Some(listen(SignalKind::hangup())?) };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())?, hangup })
    }

    /// Waits for the next of them.
    pub(super) async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// SIGUSR2: leave running turns to the next process, and go.
pub(super) struct HandOverSignal(Signal);

impl HandOverSignal {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self(signal(SignalKind::user_defined2()).context("failed to listen for signals")?))
    }

    /// Waits for it.
    pub(super) async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// Whether whoever started us wants us to outlive the terminal. To listen would undo that.
fn ignores_hangup() -> bool {
    let bit = 1 << (SignalKind::hangup().as_raw_value() - 1);
    Process::myself().and_then(|process| process.status()).is_ok_and(|status| status.sigign & bit != 0)
}

//! The signals that stop a process: SIGINT (Ctrl-C), SIGTERM, and SIGHUP, when the terminal is closed; and the one that makes a
//! daemon hand over. A daemon whose terminal is not closed ignores SIGHUP, and logs that.

use anyhow::Context;
use procfs::process::Process;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The stop signals, received from the moment this is created.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    /// Unhandled, a closed terminal would end `run` before it can end its agent. None under `nohup`.
    hangup: Option<Signal>,
    /// Set in a daemon: SIGHUP stops it only if the terminal that it was started at is closed, because operators expect
    /// SIGHUP to reload a daemon's config.
    only_with_terminal: Option<AtTerminal>,
}

/// Whether a process was started at a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct AtTerminal(bool);

impl StopSignals {
    /// Receives signals from now on.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("failed to listen for signals");
        let hangup = if ignores_hangup() { None } else { Some(listen(SignalKind::hangup())?) };
        let (interrupt, terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hangup, only_with_terminal: None })
    }

    /// The signals of a daemon.
    pub(super) fn of_daemon() -> anyhow::Result<Self> {
        Ok(Self { only_with_terminal: Some(AtTerminal(has_terminal())), ..Self::new()? })
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) {
        let (started, hangup) = (self.only_with_terminal, &mut self.hangup);
        let hangup = async {
            let Some(hangup) = hangup else { return std::future::pending().await };
            loop {
                hangup.recv().await;
                match started {
                    None => return,
                    Some(AtTerminal(true)) if !has_terminal() => return,
                    Some(_) => tracing::warn!(
                        "SIGHUP ignored: the config is read at start; restart to change it (SIGUSR2 first leaves running turns to the next daemon)"
                    ),
                }
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hangup => {}
        }
    }
}

/// SIGUSR2: leave running turns to the next process, and exit.
pub(super) struct HandOverSignal(Signal);

impl HandOverSignal {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self(signal(SignalKind::user_defined2()).context("failed to listen for signals")?))
    }

    /// Waits for the signal.
    pub(super) async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// Whether this process has a terminal that is not closed.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Whether the parent had SIGHUP ignored, as `nohup` does. Handling it would undo that.
fn ignores_hangup() -> bool {
    let bit = 1 << (SignalKind::hangup().as_raw_value() - 1);
    Process::myself().and_then(|process| process.status()).is_ok_and(|status| status.sigign & bit != 0)
}

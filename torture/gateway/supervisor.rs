//! The gateway's process: started, killed by the chaos, and restarted whenever it is down.
//!
//! Always: the times between which it may have been down are in the journal.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::journal::{Count, Journal};
use crate::run::POLL_INTERVAL;
use crate::workdir::Workdir;
use mainstay::clock::{Clock, SystemClock, Timestamp};

/// The line that it prints once it listens.
pub(super) const LISTENS: &str = "listening";
/// Even on a loaded machine it takes well under a second.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The process.
pub(crate) struct GatewaySupervisor {
    workdir: Arc<Workdir>,
    journal: Arc<Journal>,
    child: Option<Child>,
    /// When it was last seen alive.
    seen: Timestamp,
}

impl GatewaySupervisor {
    pub(crate) fn new(workdir: &Arc<Workdir>, journal: &Arc<Journal>) -> Self {
        Self { workdir: workdir.clone(), journal: journal.clone(), child: None, seen: SystemClock.now() }
    }

    /// Starts it if it is down, and waits until it can be reached.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        if self.is_running() {
            return Ok(());
        }
        let mut command = self.workdir.gateway_command();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().context("the gateway has no stdout")?;
        self.child = Some(child);
        let mut line = String::new();
        timeout(START_TIMEOUT, BufReader::new(stdout).read_line(&mut line))
            .await
            .context("the gateway does not listen")??;
        anyhow::ensure!(line.trim_end() == LISTENS, "the gateway ended while starting");
        let now = SystemClock.now();
        self.journal.gateway_was_down(self.seen, now);
        self.seen = now;
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        if self.is_running() {
            self.journal.count(Count::GatewayKills);
        }
        self.end().await;
    }

    /// Ends it without counting a kill.
    pub(crate) async fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Also waits for it. It fails if the process was gone already.
            let _ = child.kill().await;
        }
    }

    /// Whether it lives. It may have killed itself.
    fn is_running(&mut self) -> bool {
        let lives = self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        if lives {
            self.seen = SystemClock.now();
        } else {
            self.child = None;
        }
        lives
    }
}

/// Restarts it whenever it is down, until it is asked to stop.
pub(crate) async fn run(gateway: Arc<Mutex<GatewaySupervisor>>, stop: CancellationToken) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        gateway.lock().await.start().await?;
        tokio::select! {
            () = sleep(POLL_INTERVAL) => {}
            () = stop.cancelled() => {}
        }
    }
    gateway.lock().await.end().await;
    Ok(())
}

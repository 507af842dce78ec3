//! The start of a backend. One that fails for want of resources is retried under the same generation: it is no restart, and
//! counts against nothing.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::{BackendTask, Next};
use crate::backend::BackendEvent;
use crate::driver::WarmStart;
use crate::metrics::METRICS;
use crate::process::StartError;

/// A shim is started at once, or not at all.
const START_WITHIN: Duration = Duration::from_secs(60);

impl BackendTask {
    /// Starts a process under a shim, which is stored before anything of the process runs.
    pub(super) async fn begin(&mut self) -> Next {
        let Some(warm) = self.driver.warm() else { return Next::Leave };
        self.begun = std::time::Instant::now();
        let start = WarmStart {
            attempt: self.attempt(),
            workspace: self.row.workspace.clone(),
            dir: self.workspace.dir.clone(),
            session: self.row.session.clone(),
            client: self.workspace.client,
            alone: self.agent.keep_warm,
        };
        let not_started = |error: StartError| Next::Event(BackendEvent::NotStarted, error.message, error.class);
        let (reply, endpoint) = match timeout(START_WITHIN, warm.start(start)).await {
            Ok(Ok(started)) => started,
            Ok(Err(error)) if error.is_shortage => return self.wait_out(&error).await,
            Ok(Err(error)) => return not_started(error),
            Err(_) => return not_started("it could not be started in time".into()),
        };
        let (key, generation, host) = (self.row.key, self.row.generation, reply.host.clone());
        let recorded = self
            .retry_write(|store| store.record_backend(key, self.worker, generation, host.clone(), endpoint.clone()));
        if recorded.await != Some(true) {
            reply.control.leave();
            // Nothing was started, and nothing will be.
            let _ = reply.end.await;
            return Next::Look;
        }
        reply.control.begin();
        METRICS.backends_started.inc();
        tracing::info!(backend.id = %self.row.id, agent = %self.row.agent, generation, "backend started");
        (self.row.host, self.row.endpoint) = (reply.host.clone(), Some(endpoint));
        self.is_adopted = false;
        self.reply = Some(reply);
        (self.failures, self.hung_since, self.probe_at) = (0, None, Instant::now());
        self.ready_by = Instant::now() + self.care.ready_within;
        Next::event(BackendEvent::Started, "")
    }

    /// Stores that nothing of it was started, so that it is started again under the same generation: that is no restart. False
    /// if another worker supervises the backend.
    pub(super) async fn forget_start(&mut self) -> bool {
        let (key, generation) = (self.row.key, self.row.generation);
        let forgotten =
            self.retry_write(|store| store.record_backend(key, self.worker, generation, None, String::new()));
        forgotten.await == Some(true)
    }

    /// Waits until the next attempt to start it is due, after this process, or the shim, was short of resources.
    pub(super) async fn wait_out(&mut self, error: &StartError) -> Next {
        self.short_starts = self.short_starts.saturating_add(1);
        let pause = self.shared.shortages.failed(&self.row.workspace, error, self.short_starts);
        let (due, closed) = (Instant::now() + pause, self.shared.closed.clone());
        loop {
            tokio::select! {
                () = closed.cancelled() => return self.close(),
                () = sleep_until(due) => return Next::Look,
                _ = self.rows.changed() => {
                    let seen = self.rows.borrow_and_update().clone();
                    if let Some(next) = self.heed(seen) {
                        return next;
                    }
                }
            }
        }
    }
}

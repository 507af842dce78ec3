//! Whether a message would be accepted now, and its run be executed: asked by load balancers, as often as they like.
//!
//! Always: however many requests come, they cause at most one write a second, and each is answered within
//! [`WRITER_PROBE_TIMEOUT`]. Checks that cost nothing are made each time.
//!
//! Proof: `tests/faults/readiness.rs`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Engine, EngineError, Shared};
use crate::store::StoreError;

/// How long the outcome of a probe is reused.
const FRESH: Duration = Duration::from_secs(1);
/// A writer that takes longer than this is not ready.
const WRITER_PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The newest attempt to write.
#[derive(Debug, Clone)]
struct Probe {
    begun: Instant,
    /// `None` while the probe runs.
    outcome: watch::Receiver<Option<Result<(), StoreError>>>,
}

/// What is known of the writer.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    probe: Mutex<Option<Probe>>,
}

impl Readiness {
    /// The probe for a request that comes now: one that runs or is fresh, or else a new one.
    fn probe(&self, shared: &Arc<Shared>) -> Probe {
        let mut newest = self.probe.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = |probe: &&Probe| probe.outcome.borrow().is_none() || probe.begun.elapsed() < FRESH;
        if let Some(probe) = newest.as_ref().filter(answers) {
            return probe.clone();
        }
        let (done, outcome) = watch::channel(None);
        let probe = Probe { begun: Instant::now(), outcome };
        *newest = Some(probe.clone());
        let store = shared.store.clone();
        shared.tasks.spawn(async move { done.send_replace(Some(store.check_writable().await)) });
        probe
    }
}

impl Engine {
    /// Whether a message would be accepted now, and runs are executed if they are executed here at all. Answers within two
    /// seconds, and writes at most once a second, however often it is asked.
    ///
    /// # Errors
    /// [`EngineError::ShuttingDown`]; [`EngineError::Failed`]; [`EngineError::Store`] when nothing can be written;
    /// [`EngineError::Stalled`] when the writer gives no answer, the newest claim failed, ready runs are not claimed although
    /// there is room, a loop hangs, or the leases of this process were not renewed for longer than half of their length, or no
    /// agent can be started in any workspace for want of resources.
    pub async fn check_ready(&self) -> Result<(), EngineError> {
        let shared = &self.shared;
        if shared.draining.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        shared.health.check_alive()?;
        shared.store.check_place()?;
        let mut probe = shared.readiness.probe(shared);
        match tokio::time::timeout(WRITER_PROBE_TIMEOUT, probe.outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => {
                if let Some(Err(error)) = &*outcome {
                    return Err(error.again().into());
                }
            }
            // The task of the probe ended without an outcome: it was stopped.
            Ok(Err(_)) => return Err(EngineError::ShuttingDown),
            Err(_) => {
                let text = format!("its writer has given no answer for {}", seconds(probe.begun.elapsed()));
                return Err(EngineError::Stalled(text));
            }
        }
        shared.health.check_claims()?;
        shared.health.check_rounds()?;
        if let Some(reason) = shared.shortages.reason_everywhere() {
            return Err(EngineError::Stalled(format!("agents cannot be started: {reason}")));
        }
        let silent = shared.executing.silent_for().unwrap_or_default();
        if silent > shared.config.engine.lease / 2 {
            return Err(EngineError::Stalled(format!("its leases were last renewed {} ago", seconds(silent))));
        }
        Ok(())
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

//! How driving a run ended, for the log and the metrics.

use tokio::time::Instant;

use crate::failure::ErrorClass;
use crate::lease::LeaseLost;
use crate::metrics::METRICS;
use crate::run::{Outcome, Status};
use crate::store::StoreError;

/// Why a run is left without settling it.
pub(super) enum Abandoned {
    /// Another worker holds the lease now.
    LeaseLost,
    /// The database fails for good; the lease runs out, and another worker recovers the run.
    Store(StoreError),
    /// The database refuses what was to be stored, and always will; `bytes` is the size of that.
    Refused { error: StoreError, bytes: usize },
    /// This process ends, and the agent continues.
    HandedOver,
    /// The task that speaks to the agent ended abnormally.
    TaskFailed,
}

impl Abandoned {
    /// Whether an adoption that ends like this has failed because of the run, as far as this can be known.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Store(error) => !error.is_transient(),
            Self::Refused { .. } | Self::TaskFailed => true,
            Self::LeaseLost | Self::HandedOver => false,
        }
    }
}

impl From<LeaseLost> for Abandoned {
    fn from(_: LeaseLost) -> Self {
        Self::LeaseLost
    }
}

/// How driving a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Driven {
    Settled,
    PutBack,
    /// The run is as it was: the next worker recovers it.
    Left,
}

pub(super) fn log(driven: Result<Option<Outcome>, Abandoned>, began: Instant) -> Driven {
    let ended = match &driven {
        Ok(Some(_)) => Driven::Settled,
        Ok(None) => Driven::PutBack,
        Err(_) => Driven::Left,
    };
    match driven {
        Ok(Some(outcome)) => {
            let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let (status, cause) = (outcome.status(), outcome.cause.as_str());
            METRICS.runs_settled(status).inc();
            METRICS.run_seconds.observe(began.elapsed().as_secs_f64());
            if status == Status::Failed {
                METRICS.runs_failed(outcome.class).inc();
            }
            let class = outcome.class.map(ErrorClass::as_str);
            tracing::info!(%status, cause, class, error = outcome.error, duration_ms, "run settled");
        }
        Ok(None) => {
            METRICS.runs_put_back.inc();
            tracing::info!("run put back to the queue");
        }
        Err(Abandoned::LeaseLost) => {
            METRICS.leases_lost.inc();
            tracing::warn!("lease lost: the agent was left alone, nothing more was written");
        }
        Err(Abandoned::Store(error) | Abandoned::Refused { error, .. }) => {
            METRICS.runs_left.inc();
            tracing::error!(%error, "failed to store what the agent said; the run is left to the sweep");
        }
        Err(Abandoned::TaskFailed) => {
            METRICS.runs_left.inc();
            tracing::error!("the task of an agent ended abnormally; the run is left to the sweep");
        }
        Err(Abandoned::HandedOver) => {
            METRICS.runs_handed_over.inc();
            tracing::info!("run handed over: its agent goes on");
        }
    }
    ended
}

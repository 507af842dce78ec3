//! How driving a run ended, in the log and in numbers.

use tokio::time::Instant;

use crate::failure::ErrorClass;
use crate::lease::LeaseLost;
use crate::metrics::METRICS;
use crate::run::{Outcome, Status};
use crate::store::StoreError;

/// Why a run is left without settling it.
pub(super) enum Abandoned {
    /// Somebody else has it now.
    LeaseLost,
    /// The database fails for good; the lease runs out and somebody else goes on with it.
    Store(StoreError),
    /// The database refuses what was to be stored, and always will; so many bytes of it.
    Refused { error: StoreError, bytes: usize },
    /// This process goes, and the agent goes on.
    HandedOver,
    /// The task that speaks to the agent ended abnormally.
    TaskFailed,
}

impl Abandoned {
    /// Whether an adoption that ends with this has failed because of the run, as far as it can be known.
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

/// What became of a run that was driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Driven {
    Settled,
    PutBack,
    /// It is as it was: the next worker goes on with it.
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

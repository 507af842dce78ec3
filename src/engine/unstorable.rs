//! Runs that are settled from what is stored of them: no worker holds their turn, or what it holds cannot be stored.
//!
//! Always: a run ends even if the database refuses what its end carries: then it is settled with less, at last with nothing
//! but the end, which says so. The events that were stored before stay.
//!
//! Proof: `tests/it/unstorable.rs`.

use super::Shared;
use super::leased_run::LeasedRun;
use super::replay::{replay, settle_cost};
use crate::busy::off_executor;
use crate::chunk::Chunk;
use crate::lease::LeaseLost;
use crate::metrics::METRICS;
use crate::run::{Cause, Outcome};
use crate::store::StoreError;

/// How often in a row a worker may be lost, or fail, while it adopts a run, before it has read all that the agent had said.
/// Far more than happens by chance: a thousand kills at random hit five in a row.
pub(super) const MAX_FAILED_ADOPTIONS: i64 = 12;

/// The error of a run of which nothing but the end can be stored.
const BARE_END: &str = "The end of this run could not be stored as it was: the database refuses it. What was stored \
    before is kept, and the log of the daemon has the details.";

/// What of a run is stored when it is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// The chunks that end its stream, and its message.
    Whole,
    /// The chunks that end its stream.
    WithoutMessage,
    /// That it has ended, and why in a word.
    BareEnd,
}

/// The outcome of a run of which this many bytes cannot be stored.
pub(super) fn outcome(error: &StoreError, bytes: usize) -> Outcome {
    match error {
        StoreError::Refused(_) => {
            let sentence = format!(
                "{bytes} bytes of what the agent said cannot be stored ({error}). The run ends with what was stored before; a \
                 lower `max_line_bytes` of the agent skips what is too long."
            );
            Outcome::because(Cause::Unstorable, sentence)
        }
        // Not the agent's fault.
        _ => {
            let sentence = format!(
                "An internal error: {bytes} bytes of what the agent said could not be stored ({error}). The run ends with what \
                 was stored before."
            );
            Outcome::because(Cause::Internal, sentence)
        }
    }
}

/// Settles a run whose turn no worker holds in memory: its state is read back from its events. What the database refuses
/// of it is left out.
pub(super) async fn settle_from_log(
    shared: &Shared,
    leased: &LeasedRun,
    outcome: Outcome,
) -> Result<Result<Outcome, LeaseLost>, StoreError> {
    let mut settled = settle_as(shared, leased, outcome.clone(), Extent::Whole).await;
    for extent in [Extent::WithoutMessage, Extent::BareEnd] {
        let Err(error) = &settled else { break };
        // A write that is too large for SQLite's memory was retried long enough.
        let is_too_large = outcome.cause == Cause::Unstorable && matches!(error, StoreError::OutOfMemory);
        if !error.is_permanent() && !is_too_large {
            break;
        }
        tracing::error!(run.id = %leased.run, %error, "the database refuses the end of a run; settling it with less");
        settled = settle_as(shared, leased, outcome.clone(), extent).await;
    }
    let settled = settled?;
    if settled.as_ref().is_ok_and(|outcome| outcome.cause == Cause::Unstorable) {
        METRICS.runs_unstorable.inc();
    }
    Ok(settled)
}

async fn settle_as(
    shared: &Shared,
    leased: &LeasedRun,
    outcome: Outcome,
    extent: Extent,
) -> Result<Result<Outcome, LeaseLost>, StoreError> {
    // Refused: the lease is lost, or a cancel was stored in the meantime, which decides the outcome.
    match close_and_settle(shared, leased, &outcome, extent).await? {
        Ok(()) => Ok(Ok(outcome)),
        Err(LeaseLost) => {
            let cancelled = Outcome::cancelled();
            Ok(close_and_settle(shared, leased, &cancelled, extent).await?.map(|()| cancelled))
        }
    }
}

/// Reads the turn back for each attempt: a message may be large, and is kept only once.
async fn close_and_settle(
    shared: &Shared,
    leased: &LeasedRun,
    outcome: &Outcome,
    extent: Extent,
) -> Result<Result<(), LeaseLost>, StoreError> {
    if extent == Extent::BareEnd {
        let error = outcome.error.as_ref().map(|_| BARE_END.to_owned());
        let bare = Outcome { error, class: None, retry_at: None, ..outcome.clone() };
        let events = Chunk::bare_end(bare.status(), BARE_END);
        let mut settle = leased.settle(&shared.config, events, bare, None);
        settle.resumes = 0;
        return Ok(shared.store.settle(settle).await?.map(|_| ()));
    }
    let account = shared.memory.open_account();
    // Sweeps and the renewal of leases wait for this one: it waits for no other turn.
    account.hurry();
    let mut turn = replay(&shared.store, leased.lease.run, &account).await?;
    let bytes = turn.bytes();
    let _memory = account.output(settle_cost(bytes)).await;
    let (events, parts) = off_executor(bytes, || {
        let events = turn.close(outcome);
        (events, (extent == Extent::Whole).then(|| turn.into_parts_json()))
    });
    let settle = leased.settle(&shared.config, events, outcome.clone(), parts);
    Ok(shared.store.settle(settle).await?.map(|_| ()))
}

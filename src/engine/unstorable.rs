//! Runs that are settled from what is stored of them: no worker holds their turn, or what it holds cannot be stored.
//!
//! Always: a run comes to an end even if its message cannot be stored; then its events, which were, are all that is left of it.
//!
//! Proof: `tests/it/unstorable.rs`.

use super::Shared;
use super::replay::{replay, settle_cost};
use super::subject::Subject;
use crate::lease::LeaseLost;
use crate::metrics::METRICS;
use crate::run::Outcome;
use crate::store::StoreError;

/// So often in a row may a worker be lost, or fail, while it goes on with a run, before it has read all that the agent had
/// said. Far more than happens by chance: a thousand kills at random hit five in a row.
pub(super) const MAX_FAILED_ADOPTIONS: i64 = 12;

/// Settles a run without what cannot be stored.
pub(super) async fn settle(
    shared: &Shared,
    subject: &Subject,
    outcome: Outcome,
) -> Result<Result<Outcome, LeaseLost>, StoreError> {
    let settled = match settle_from_log(shared, subject, outcome.clone()).await {
        Err(error) if error.is_refusal() => {
            tracing::error!(run.id = %subject.run, %error, "the message of a run cannot be stored; settling it without");
            settle_as(shared, subject, outcome, false).await?
        }
        settled => settled?,
    };
    if settled.is_ok() {
        METRICS.runs_unstorable.inc();
    }
    Ok(settled)
}

/// Settles a run whose turn no worker holds in memory: its state is read back from its events.
pub(super) async fn settle_from_log(
    shared: &Shared,
    subject: &Subject,
    outcome: Outcome,
) -> Result<Result<Outcome, LeaseLost>, StoreError> {
    settle_as(shared, subject, outcome, true).await
}

async fn settle_as(
    shared: &Shared,
    subject: &Subject,
    outcome: Outcome,
    with_message: bool,
) -> Result<Result<Outcome, LeaseLost>, StoreError> {
    // Refused: the lease is lost, or a cancel was stored in the meantime, which decides the outcome.
    match close_and_settle(shared, subject, &outcome, with_message).await? {
        Ok(()) => Ok(Ok(outcome)),
        Err(LeaseLost) => {
            let cancelled = Outcome::cancelled();
            Ok(close_and_settle(shared, subject, &cancelled, with_message).await?.map(|()| cancelled))
        }
    }
}

/// Reads the turn back for each try: a message may be large, and is kept once only.
async fn close_and_settle(
    shared: &Shared,
    subject: &Subject,
    outcome: &Outcome,
    with_message: bool,
) -> Result<Result<(), LeaseLost>, StoreError> {
    let account = shared.memory.open_account();
    let mut turn = replay(&shared.store, subject.lease.run).await?;
    account.set_message(turn.bytes());
    let _memory = account.output(settle_cost(turn.bytes())).await;
    let events = turn.close(outcome);
    let parts = with_message.then(|| turn.into_parts_json());
    let settle = subject.settle(&shared.config, events, outcome.clone(), parts);
    Ok(shared.store.settle(settle).await?.map(|_| ()))
}

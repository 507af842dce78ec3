//! How a run leaves its worker: settled, or put back into the queue.

use super::{Abandoned, Drive};
use crate::agent::Agent;
use crate::busy::off_executor;
use crate::driver::Driver;
use crate::engine::progress::progress;
use crate::engine::replay::settle_cost;
use crate::engine::{shortage, unstorable};
use crate::failure::ErrorClass;
use crate::lease::LeaseLost;
use crate::run::{Cause, ExitReport, Outcome};

impl Drive<'_> {
    pub(super) async fn put_back(&self) -> Result<bool, Abandoned> {
        self.retry_write(|| self.shared.store.put_back(self.leased.lease)).await
    }

    /// Puts back a run whose agent could not be started for want of resources, so that others get its worker. `shortages` is
    /// how often that happened before.
    pub(super) async fn put_back_short(&self, short_of: &str, shortages: i64) -> Result<bool, Abandoned> {
        let (store, lease, rest) = (&self.shared.store, self.leased.lease, shortage::rest(shortages));
        self.retry_write(|| store.put_back_short(lease, rest, short_of.to_owned())).await
    }

    /// Puts back a run whose turn came to nothing, if a retry may succeed: its backend died, or it could not resume its
    /// conversation. The conversation is given up only when the agent proves that it is gone; any other failure is retried
    /// once.
    pub(super) async fn try_again(
        &mut self,
        agent: &Agent,
        driver: &dyn Driver,
        exit: &ExitReport,
    ) -> Result<bool, Abandoned> {
        let outcome = self.outcome(agent, driver, None, exit);
        let has_failed = self.conversation.has_failed_to_start();
        if outcome.cause == Cause::Finished && !has_failed {
            return Ok(false);
        }
        if self.has_lost_its_backend(driver).await? {
            return self.put_back().await;
        }
        let Some(session) = self.conversation.not_resumed() else { return Ok(false) };
        let stderr = exit.stderr.as_deref().unwrap_or_default();
        if self.conversation.is_gone() || driver.is_session_gone(stderr, session) {
            return self.put_back_afresh().await;
        }
        let may_pass = has_failed || outcome.class == Some(ErrorClass::Crashed);
        if !may_pass || !self.retry_write(|| self.shared.store.is_first_try(self.leased.lease.run)).await? {
            return Ok(false);
        }
        tracing::warn!(error = outcome.error, "the agent could not go on in its session; trying once more");
        self.put_back().await
    }

    pub(super) async fn put_back_afresh(&self) -> Result<bool, Abandoned> {
        let is_put_back = self.retry_write(|| self.shared.store.put_back_afresh(self.leased.lease)).await?;
        if is_put_back {
            tracing::warn!("the session of the agent is gone; trying once more in a new one");
        }
        Ok(is_put_back)
    }

    pub(super) async fn settle(&mut self, outcome: Outcome, exit: ExitReport) -> Result<Option<Outcome>, Abandoned> {
        match self.try_settle(outcome.clone(), exit.clone()).await? {
            Ok(class) => {
                self.prompts.ended();
                Ok(Some(Outcome { class, ..outcome }))
            }
            Err(LeaseLost) => {
                // A cancel that was stored a moment before decides the outcome.
                let requests = self.retry_write(|| self.shared.store.cancel_requests(self.worker)).await?;
                if outcome.cause == Cause::Cancelled || !requests.contains(&self.leased.lease.run) {
                    return Err(Abandoned::LeaseLost);
                }
                self.turn = self.replayed().await?;
                self.try_settle(Outcome::cancelled(), exit).await??;
                Ok(Some(Outcome::cancelled()))
            }
        }
    }

    /// Closes the turn; if it is needed once more, it is read back from the store. Returns the class of the error that is
    /// stored.
    async fn try_settle(
        &mut self,
        outcome: Outcome,
        exit: ExitReport,
    ) -> Result<Result<Option<ErrorClass>, LeaseLost>, Abandoned> {
        let bytes = self.turn.bytes();
        // The reservations ahead of this one wait for nothing but their commits.
        let _memory = match &self.memory {
            Some(memory) if bytes > 0 => Some(tokio::select! {
                permit = memory.output(settle_cost(bytes)) => permit,
                () = self.signals.lost.cancelled() => return Err(Abandoned::LeaseLost),
            }),
            _ => None,
        };
        let (progress, events, parts) = off_executor(bytes, || {
            let progress = progress(self.turn.fold());
            let events = self.turn.close(&outcome);
            (progress, events, Some(std::mem::take(&mut self.turn).into_parts_json()))
        });
        let mut settle = self.leased.settle(&self.shared.config, events, outcome, parts);
        settle.source_offset = i64::try_from(self.offset).unwrap_or(i64::MAX);
        settle.progress = progress;
        if exit.remaining > 0 {
            settle.resumes = 0;
        }
        settle.exit = exit;
        match self.retry_write(|| self.shared.store.settle(settle.clone())).await {
            Err(Abandoned::Store(error)) if error.is_permanent() => {
                let bytes = settle.events.iter().map(|chunk| chunk.to_json().len()).sum::<usize>();
                Err(Abandoned::Refused { error, bytes: bytes + settle.parts.map_or(0, |parts| parts.len()) })
            }
            settled => Ok(settled?.map(|settled| settled.class)),
        }
    }

    /// Settles a run whose output the database refuses, with what is stored of it.
    pub(super) async fn without_what_is_refused(
        &mut self,
        driven: Result<Option<Outcome>, Abandoned>,
    ) -> Result<Option<Outcome>, Abandoned> {
        let (error, bytes) = match driven {
            Err(Abandoned::Refused { error, bytes }) => (error, bytes),
            driven => return driven,
        };
        tracing::error!(%error, bytes, "the database refuses what the agent said; settling the run without it");
        let outcome = unstorable::outcome(&error, bytes);
        // The turn is read back from the store, and takes its memory then.
        (self.turn, self.memory) = (Default::default(), None);
        let settled =
            self.retry_write(|| unstorable::settle_from_log(self.shared, &self.leased, outcome.clone())).await??;
        self.prompts.ended();
        Ok(Some(settled))
    }
}

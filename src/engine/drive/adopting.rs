//! Adopting a run whose worker was lost.
//!
//! Always: an adoption counts as failed from its beginning, because a process that it takes down cannot count any more. It
//! stops counting once all is read that the agent had said, or when it ends for a reason that is not the run's.

use super::abandoned::Abandoned;
use super::starting::NotBegun;
use super::{Conversation, Drive, Followed, PermissionPrompts};
use crate::engine::replay::replay;
use crate::engine::turn::Turn;
use crate::process::Adoption;
use crate::run::Outcome;
use crate::store::run::Orphan;

impl Drive<'_> {
    /// Adopts a run that another worker began. Returns the outcome; `None` if the run went back to the queue.
    pub(super) async fn adopted(&mut self, orphan: &Orphan) -> Result<Option<Outcome>, Abandoned> {
        let driven = self.read_on(orphan).await;
        if self.is_counted && driven.as_ref().is_err_and(|left| !left.is_failure()) {
            self.is_counted = false;
            if let Err(error) = self.shared.store.uncount_adoption(self.leased.lease.run).await {
                tracing::warn!(%error, "an adoption that did not fail counts as failed");
            }
        }
        driven
    }

    async fn read_on(&mut self, orphan: &Orphan) -> Result<Option<Outcome>, Abandoned> {
        let found = self.shared.config.agents.get(&orphan.agent).zip(orphan.host.as_ref());
        let found = found.zip(self.shared.drivers.get(&orphan.agent));
        let Some(((agent, host), driver)) = found else { return Err(Abandoned::HandedOver) };
        // Before any of it is read: the reading may be what takes this process down.
        if !self.retry_write(|| self.shared.store.begin_adoption(self.leased.lease)).await? {
            return Err(Abandoned::LeaseLost);
        }
        self.is_counted = true;
        self.turn = self.replayed().await?;
        self.prompts = PermissionPrompts::again(
            self.retry_write(|| self.shared.store.permissions_of_run(self.leased.lease.run)).await?,
        );
        self.on = self.retry_write(|| self.shared.store.backend_of_run(self.leased.lease.run)).await?;
        let was_given_up = self.retry_write(|| self.shared.store.has_given_up_session(self.leased.lease.run)).await?;
        let wanted = self.retry_write(|| self.shared.store.session_to_go_on_in(self.leased.lease.run)).await?;
        self.conversation = Conversation::new(wanted, was_given_up);
        self.offset = u64::try_from(orphan.source_offset).unwrap_or(0);
        let adoption = Adoption { attempt: self.leased.attempt(), host: host.clone(), offset: self.offset };
        self.is_behind = true;
        match driver.adopt(adoption).await {
            Some(reply) => match self.follow(agent, driver.as_ref(), reply).await? {
                Followed::Done(outcome) => Ok(outcome),
                // Nothing of the agent ran: the run starts anew when resources are available.
                Followed::Short(error) => {
                    self.shared.shortages.rests(&orphan.workspace, &error, orphan.shortages);
                    self.leave_not_begun(NotBegun::Short(error.message), orphan.shortages).await
                }
            },
            None => Err(Abandoned::HandedOver),
        }
    }

    /// The turn as it is stored. It takes memory, for which it may wait; a cancel ends the wait.
    pub(super) async fn replayed(&mut self) -> Result<Turn, Abandoned> {
        if let Some(before) = self.memory.take() {
            before.set_message(0);
        }
        let account = self.shared.memory.open_account();
        let turn = {
            let mut replaying =
                std::pin::pin!(self.retry_write(|| replay(&self.shared.store, self.leased.lease.run, &account)));
            loop {
                tokio::select! {
                    biased;
                    turn = &mut replaying => break turn?,
                    () = self.signals.lost.cancelled() => return Err(Abandoned::LeaseLost),
                    () = self.shared.leaving.cancelled() => return Err(Abandoned::HandedOver),
                    () = self.signals.cancel.cancelled(), if !account.hurries() => account.hurry(),
                    () = self.shared.ending.cancelled(), if !account.hurries() => account.hurry(),
                }
            }
        };
        self.memory = Some(account);
        Ok(turn)
    }
}

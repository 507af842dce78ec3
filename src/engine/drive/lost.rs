//! A turn whose process was lost may continue in a backend. It is ended there before the run is settled or put back: the next
//! turn in the slot, of this session or another, must not meet it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{Abandoned, Drive};
use crate::driver::Driver;
use crate::lease::BackendKey;
use crate::metrics::METRICS;
use crate::process::{TurnPlace, reap};
use crate::run::{Attempt, ExitReport};
use crate::store::run::TurnLocation;
use crate::text::AgentSessionId;

/// A backend ends a turn within this time, or is ended itself. Longer than a bridge gives its agent.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// The limit once the engine is to end now.
const ENDS_AT_ONCE: Duration = Duration::from_secs(1);
/// A backend that cannot be reached may be about to die, which its supervisor finds out.
const END_TURN_RETRY_INTERVAL: Duration = Duration::from_millis(100);

impl Drive<'_> {
    /// Ends the turn wherever it continues. What cannot be ended is counted as remaining.
    pub(super) async fn end_lost_turn(&self, driver: &dyn Driver, exit: &mut ExitReport) -> Result<(), Abandoned> {
        let began = Instant::now();
        loop {
            // If this process was paused, its lease may be gone and the agent on the next turn of its session. Recheck before
            // cancelling.
            let found = self.retry_write(|| self.shared.store.turn_location(self.leased.lease)).await?;
            let Some(found) = found else { return Err(Abandoned::LeaseLost) };
            let on = found.backend;
            let is_restarted = self.on.as_ref().zip(on).is_some_and(|(ours, (_, now))| ours.generation != now);
            if on.is_some() && (is_restarted || found.endpoint.is_none()) {
                return Ok(());
            }
            let hurries = self.shared.ending.is_cancelled();
            let patience = if hurries { ENDS_AT_ONCE } else { ENDS_WITHIN };
            let left = patience.saturating_sub(began.elapsed());
            let Some(place) = self.place_of(found) else { return Ok(()) };
            let reason = tokio::select! {
                biased;
                () = self.signals.lost.cancelled() => return Err(Abandoned::LeaseLost),
                () = self.shared.leaving.cancelled() => return Err(Abandoned::HandedOver),
                () = self.shared.ending.cancelled(), if !hurries => continue,
                ended = timeout(left, driver.end_turn(&place)) => match ended {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(reason)) => reason,
                    Err(_) => "it does not answer".to_owned(),
                },
            };
            if began.elapsed() >= patience {
                tracing::warn!(reason, "a live agent may still be at a turn whose process was lost");
                // In a hurry the backend is left as it is, to its next supervisor.
                if hurries || !self.end_backend(on.map(|(key, _)| key)).await? {
                    METRICS.turns_not_ended.inc();
                    exit.remaining += 1;
                }
                return Ok(());
            }
            sleep(END_TURN_RETRY_INTERVAL).await;
        }
    }

    /// `None` if no process was started for it.
    fn place_of(&self, found: TurnLocation) -> Option<TurnPlace> {
        Some(TurnPlace {
            attempt: Attempt { run: self.leased.run, number: found.shim_attempt? },
            session: found.session,
            slot: found.slot.unwrap_or_else(|| found.workspace.to_string()),
            workspace: found.workspace,
            dir: found.dir?.into(),
            // A session that the agent announced is stored only once it has said something in it.
            agent_session: self
                .conversation
                .announced()
                .or(found.agent_session.as_ref().map(AgentSessionId::as_str))
                .map(str::to_owned),
            endpoint: found.endpoint,
        })
    }

    /// Ends a backend that does not end a turn, if no other turn is on it. Returns whether nothing is left of it.
    async fn end_backend(&self, on: Option<BackendKey>) -> Result<bool, Abandoned> {
        let Some(key) = on else { return Ok(false) };
        let Some(row) = self.retry_write(|| self.shared.store.live_backend(key)).await? else { return Ok(true) };
        if self.retry_write(|| self.shared.store.has_other_turns(key, self.leased.lease.run)).await? {
            return Ok(false);
        }
        let Some(host) = row.host else { return Ok(true) };
        let attempt = Attempt { run: row.id.into(), number: row.generation };
        let ended = reap::end(reap::Mark::up_to(attempt), Some(host.process), Duration::ZERO).await;
        METRICS.processes_ended.inc_by(u64::try_from(ended.ended).unwrap_or(u64::MAX));
        Ok(ended.is_certain)
    }
}

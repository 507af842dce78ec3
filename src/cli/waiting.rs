//! Tells on stderr what a followed run waits for.
//!
//! Always: a reason is printed once, until it changes, and only if the run has waited for some time: most waits are over before
//! a person could read about them.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::plain::plain;
use crate::run::Run;
use crate::telemetry;
use crate::waiting::WaitsFor;

/// Poll interval for what a run waits for.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// A shorter wait is not reported.
const TOLD_AFTER: Duration = Duration::from_millis(400);
/// A worker polls for runs once a second, and later on a loaded machine.
const WORKER_TOLD_AFTER: Duration = Duration::from_secs(4);

/// What was observed and printed about the waits of a run, or of the runs of a session.
pub(super) struct Waiting {
    poll: Interval,
    json: bool,
    seen: Option<(WaitsFor, Instant)>,
    told: Option<WaitsFor>,
}

impl Waiting {
    pub(super) fn new(json: bool) -> Self {
        let mut poll = interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { poll, json, seen: None, told: None }
    }

    /// Returns when it is time to poll.
    pub(super) async fn tick(&mut self) {
        self.poll.tick().await;
    }

    /// Takes the run as it is now; prints what it waits for if that is new.
    pub(super) fn look(&mut self, run: &Run) {
        let now = Instant::now();
        if let Some(reason) = self.take(run.waits_for, now)
            && tracing::enabled!(tracing::Level::WARN)
        {
            let text = format!("waiting for {}", explain(reason, run));
            let line = match self.json {
                true => json!({ "run_id": run.id, "waits_for": reason, "message": text }).to_string(),
                false => format!("({})", plain(&text)),
            };
            telemetry::say(&format!("{line}\n"));
        }
    }

    /// What is to be printed now.
    fn take(&mut self, reason: Option<WaitsFor>, now: Instant) -> Option<WaitsFor> {
        let Some(reason) = reason else {
            (self.seen, self.told) = (None, None);
            return None;
        };
        let (_, since) = *self.seen.insert(self.seen.filter(|(seen, _)| *seen == reason).unwrap_or((reason, now)));
        let patience = if reason == WaitsFor::Worker { WORKER_TOLD_AFTER } else { TOLD_AFTER };
        let is_news = self.told != Some(reason) && now.duration_since(since) >= patience;
        is_news.then(|| *self.told.insert(reason))
    }
}

/// For people: what the run waits for, and what they can do.
pub(super) fn explain(reason: WaitsFor, run: &Run) -> String {
    let Run { session_id, workspace, agent, .. } = run;
    match reason {
        WaitsFor::Turn => format!("its turn: other runs of session {session_id} come first"),
        WaitsFor::Slot => format!("a slot of workspace {workspace}: all are taken by busy sessions (`mainstay slots`)"),
        WaitsFor::SharedAgent => {
            format!(
                "the agent that sessions without a slot share in workspace {workspace}: it takes one turn at a time"
            )
        }
        WaitsFor::NotBefore => {
            run.not_before.map_or_else(|| "its time".to_owned(), |at| format!("its time: it begins at {at}"))
        }
        WaitsFor::Resources => {
            let short_of = run.short_of.as_deref().unwrap_or("the system is short of them");
            run.not_before.map_or_else(
                || format!("resources: {short_of}"),
                |at| format!("resources: {short_of}; its start is tried again at {at}"),
            )
        }
        WaitsFor::AgentLimit => format!("agent {agent}: it has as many turns at once as it may (`max_concurrent`)"),
        WaitsFor::Worker => "a worker: all are busy (`mainstay workers`)".to_owned(),
        WaitsFor::Daemon => "a daemon: no process executes runs on this file; start `mainstay serve`".to_owned(),
        WaitsFor::Answer => "an answer to what its agent asks (`mainstay permissions`)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_are_said_once_until_they_change() {
        let mut waiting = Waiting::new(false);
        let start = Instant::now();
        let mut after = |ms, reason| waiting.take(reason, start + Duration::from_millis(ms));
        let (turn, slot, worker) = (Some(WaitsFor::Turn), Some(WaitsFor::Slot), Some(WaitsFor::Worker));
        for (ms, reason, said) in [
            (0, turn, None),
            (500, turn, turn),
            (1000, turn, None),
            (1500, slot, None),
            (2000, slot, slot),
            (2500, worker, None),
            (3000, worker, None),
            (3500, slot, None),
            (4000, slot, None),
            (4500, None, None),
            (5000, slot, None),
            (5500, slot, slot),
        ] {
            assert_eq!(after(ms, reason), said, "after {ms} ms");
        }
    }
}

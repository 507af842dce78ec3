//! A claimed run, from what it needs to the start of its agent. A start that fails for want of resources is retried a few
//! times. Then the run goes back to the queue for a while, so that others get its worker. That time counts against no limit of
//! the turn.
//!
//! Always: an agent begins only after its shim was stored.

use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::abandoned::Abandoned;
use super::{Conversation, Drive, Followed};
use crate::agent::{Agent, OnInterrupt};
use crate::agent_event::AgentEvent;
use crate::engine::decide::not_started;
use crate::engine::prompting::{options_of, working_dir};
use crate::engine::shortage;
use crate::message;
use crate::options::SessionOptions;
use crate::policy::OptionRules;
use crate::process::{Prompt, Reply, StartError, TurnPlace};
use crate::run::{Cause, ExitReport, Outcome};
use crate::store::run::Claimed;

/// The options of a turn, as they were checked before it began.
struct Judged {
    options: SessionOptions,
    rules: OptionRules,
    dir: PathBuf,
}

/// How a run whose turn did not begin leaves its worker.
pub(super) enum NotBegun {
    Settled(Outcome),
    PutBack,
    /// It waits in the queue for resources that the system is short of.
    Short(String),
}

impl Drive<'_> {
    /// Drives a claimed run. Returns the outcome; `None` if the run went back to the queue.
    pub(super) async fn claimed(&mut self, claimed: &Claimed) -> Result<Option<Outcome>, Abandoned> {
        let Some(agent) = self.shared.config.agents.get(&claimed.agent) else {
            let error = format!("agent {:?} is not configured in this process", claimed.agent.as_str());
            return self.settle(Outcome::because(Cause::Unconfigured, error), ExitReport::default()).await;
        };
        let Some(workspace) = self.shared.config.workspaces.get(&claimed.workspace) else {
            let error = format!("workspace {:?} is not configured in this process", claimed.workspace.as_str());
            return self.settle(Outcome::because(Cause::Unconfigured, error), ExitReport::default()).await;
        };
        if self.signals.cancel.is_cancelled() {
            return self.settle(Outcome::cancelled(), ExitReport::default()).await;
        }
        let mut options = options_of(&claimed.options);
        let rules = self.leased.rules(&self.shared.config);
        let dir = match working_dir(&mut options, &rules, workspace).await {
            Ok(dir) => dir,
            Err(outcome) => return self.settle(outcome, ExitReport::default()).await,
        };
        let judged = Judged { options, rules, dir };
        let Some(driver) = self.shared.drivers.get(&agent.name) else {
            return self
                .settle(Outcome::because(Cause::Internal, "the agent has no backend"), ExitReport::default())
                .await;
        };
        if let Some(warm) = driver.warm() {
            match self.take_backend(warm, claimed, agent).await? {
                Ok(taken) => self.on = Some(taken),
                Err(not_begun) => return self.leave_not_begun(not_begun, claimed.shortages).await,
            }
        }
        let was_given_up = self.retry_write(|| self.shared.store.has_given_up_session(self.leased.lease.run)).await?;
        self.conversation = Conversation::new(claimed.agent_session.clone(), was_given_up);
        let mut tries = 0;
        loop {
            self.prompted_at = Some(std::time::Instant::now());
            let error = match driver.prompt(self.prompt(claimed, agent, &judged)).await {
                Ok(reply) => {
                    let reply = self.record(reply, &judged.dir).await?;
                    reply.control.begin();
                    match self.follow(agent, driver.as_ref(), reply).await? {
                        Followed::Done(outcome) => return Ok(outcome),
                        Followed::Short(error) => error,
                    }
                }
                Err(error) if error.is_shortage => error,
                Err(error) => return self.settle(not_started(&error), ExitReport::default()).await,
            };
            tries += 1;
            let not_begun = if tries < shortage::TRIES && claimed.shortages == 0 {
                self.wait_out(&error, tries).await?
            } else {
                self.shared.shortages.rests(&claimed.workspace, &error, claimed.shortages);
                Some(NotBegun::Short(error.message))
            };
            if let Some(not_begun) = not_begun {
                return self.leave_not_begun(not_begun, claimed.shortages).await;
            }
        }
    }

    fn prompt(&self, claimed: &Claimed, agent: &Agent, judged: &Judged) -> Prompt {
        let parts: Vec<serde_json::Value> = serde_json::from_str(&claimed.message_parts).unwrap_or_default();
        let (message, attachments) = match &agent.on_interrupt {
            OnInterrupt::Resume { message, .. } if claimed.resumes => (message.clone(), Vec::new()),
            OnInterrupt::Resume { .. } | OnInterrupt::Stop => (message::prompt(&parts), message::attachments(&parts)),
        };
        Prompt {
            place: TurnPlace {
                attempt: self.leased.attempt(),
                session: claimed.session_id.clone(),
                slot: claimed.slot.clone().unwrap_or_else(|| claimed.workspace.to_string()),
                workspace: claimed.workspace.clone(),
                dir: judged.dir.clone(),
                agent_session: claimed.agent_session.as_ref().map(ToString::to_string),
                endpoint: self.on.as_ref().map(|taken| taken.endpoint.clone()),
            },
            // A worker that was paused since its claim may have lost the run, perhaps to one that has finished it by now.
            // After the start it is too late to find out: the agent has begun to act.
            start_by: self.signals.good_until(),
            limit: self.limit(agent).saturating_sub(self.began.elapsed()),
            message,
            attachments,
            options: judged.options.clone(),
            rules: judged.rules.clone(),
            oneshot: claimed.oneshot,
        }
    }

    /// Stores the shim before its agent is started, so that the next worker finds it.
    async fn record(&self, reply: Reply, dir: &Path) -> Result<Reply, Abandoned> {
        let Some(host) = reply.host.clone() else { return Ok(reply) };
        let (lease, dir) = (self.leased.lease, dir.to_string_lossy().into_owned());
        let stored = self.retry_write(|| self.shared.store.record_shim(lease, host.clone(), dir.clone())).await;
        let Some(left) = stored.map_or_else(Some, |stored| (!stored).then_some(Abandoned::LeaseLost)) else {
            return Ok(reply);
        };
        reply.control.leave();
        // Nothing was started, and nothing will be.
        let _ = reply.end.await;
        Err(left)
    }

    /// Notes, once, that the agent was started: it speaks, or has ended.
    pub(super) fn note_start(&mut self) {
        let Some(begun) = self.prompted_at.take() else { return };
        match self.on {
            None => self.shared.shortages.started(&self.leased.workspace, begun),
            Some(_) => self.shared.shortages.served(&self.leased.workspace, begun),
        }
    }

    /// Waits until the next attempt to start the agent is due. Returns how the run leaves this worker if there is none.
    async fn wait_out(&mut self, error: &StartError, tries: u32) -> Result<Option<NotBegun>, Abandoned> {
        let pause = self.shared.shortages.failed(&self.leased.workspace, error, tries);
        let status = format!("Waiting for resources: {}", error.message);
        let told = self.turn.hear(AgentEvent::Status(status));
        self.append(told, Vec::new(), false).await?;
        let end = tokio::select! {
            biased;
            () = self.signals.lost.cancelled() => return Err(Abandoned::LeaseLost),
            () = self.signals.cancel.cancelled() => Some(NotBegun::Settled(Outcome::cancelled())),
            () = self.shared.ending.cancelled() => Some(NotBegun::PutBack),
            () = self.shared.leaving.cancelled() => Some(NotBegun::PutBack),
            () = tokio::time::sleep(pause) => None,
        };
        self.began = Instant::now();
        Ok(end)
    }

    /// Settles a run whose turn was not begun, or puts it back.
    pub(super) async fn leave_not_begun(
        &mut self,
        not_begun: NotBegun,
        shortages: i64,
    ) -> Result<Option<Outcome>, Abandoned> {
        let is_put_back = match not_begun {
            NotBegun::Settled(outcome) => return self.settle(outcome, ExitReport::default()).await,
            NotBegun::PutBack => self.put_back().await?,
            NotBegun::Short(short_of) => self.put_back_short(&short_of, shortages).await?,
        };
        if is_put_back { Ok(None) } else { self.settle(Outcome::cancelled(), ExitReport::default()).await }
    }
}

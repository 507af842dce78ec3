//! Permission requests of a run's agent: decided by the policy of the config or by the first answer, then sent to the agent.
//!
//! Always: a decision is stored before the agent is told, and a process that adopts the run tells it again.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Abandoned, Drive};
use crate::agent::Permissions;
use crate::chunk::Chunk;
use crate::clock::Timestamp;
use crate::driver::Driver;
use crate::engine::turn::Turn;
use crate::id::PermissionId;
use crate::metrics::METRICS;
use crate::permission::{Answer, Decision, Permission, PermissionRequest, PermissionState, Policy};
use crate::store::fact::Fact;
use crate::store::permission::NewPermission;

/// Poll interval for answers, which another process may have stored.
const ANSWER_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The permission requests of a turn.
#[derive(Default)]
pub(super) struct PermissionPrompts {
    questions: Vec<Question>,
    /// Lines for the agent's stdin that are not written yet, oldest first.
    pub untold: VecDeque<String>,
    look_at: Option<Instant>,
}

struct Question {
    id: PermissionId,
    request: PermissionRequest,
    expires_at: Option<Timestamp>,
    is_decided: bool,
}

impl Drop for PermissionPrompts {
    fn drop(&mut self) {
        let open = i64::try_from(self.open().count()).unwrap_or(i64::MAX);
        METRICS.permissions_pending.dec_by(open);
    }
}

impl Question {
    fn new(id: PermissionId, request: PermissionRequest, expires_at: Option<Timestamp>) -> Self {
        METRICS.permissions_pending.inc();
        Self { id, request, expires_at, is_decided: false }
    }

    fn decided(&mut self, state: PermissionState) {
        if !std::mem::replace(&mut self.is_decided, true) {
            METRICS.permissions_pending.dec();
            METRICS.permissions_decided(state).inc();
        }
    }

    /// Queues the decision for the agent, and drops the tool's input: it is not needed any more, and may be large.
    fn tell(&mut self, decision: &Decision, driver: &dyn Driver, untold: &mut VecDeque<String>) {
        untold.extend(driver.answer(&self.request, decision));
        self.request.input = serde_json::Value::Null;
    }
}

impl PermissionPrompts {
    /// The questions of an adopted run. The first poll is due at once: decisions are sent to the agent even if an earlier
    /// process sent them.
    pub fn again(asked: Vec<Permission>) -> Self {
        let questions = asked.into_iter().map(|asked| Question::new(asked.id, asked.request, asked.expires_at));
        let questions: Vec<_> = questions.collect();
        let look_at = (!questions.is_empty()).then(Instant::now);
        Self { questions, untold: VecDeque::new(), look_at }
    }

    /// Whether a question is open.
    pub fn is_waiting(&self) -> bool {
        self.open().next().is_some()
    }

    /// Waits for a wake-up or for the next poll.
    pub async fn look(&self, answers: &Notify) {
        tokio::select! {
            () = answers.notified() => {}
            () = sleep_until(self.look_at.unwrap_or_else(Instant::now)) => {}
        }
    }

    /// The run is settled: its open questions count as cancelled.
    pub fn ended(&self) {
        let open = u64::try_from(self.open().count()).unwrap_or(u64::MAX);
        METRICS.permissions_decided(PermissionState::Cancelled).inc_by(open);
    }

    fn open(&self) -> impl Iterator<Item = &Question> {
        self.questions.iter().filter(|question| !question.is_decided)
    }

    /// The agent asks for a permission. A repeated request is the same question.
    pub fn hear(
        &mut self,
        request: PermissionRequest,
        rules: &Permissions,
        now: Timestamp,
        turn: &mut Turn,
        driver: &dyn Driver,
    ) -> (Option<Fact>, Vec<Chunk>) {
        if self.questions.iter().any(|question| question.request.request == request.request) {
            return (None, Vec::new());
        }
        let id = PermissionId::generate();
        let decision = decide(&request, rules);
        let mut chunks = Vec::new();
        let mut asked = request.clone();
        let expires_at = decision.is_none().then(|| now + rules.timeout);
        let mut question = Question::new(id, request, expires_at);
        match &decision {
            Some(decision) => {
                question.decided(decision.state());
                question.tell(decision, driver, &mut self.untold);
            }
            None => {
                (asked.tool_call, chunks) = turn.ask(&question.request, id.to_string());
                question.request.tool_call.clone_from(&asked.tool_call);
                self.look_at = Some(Instant::now() + ANSWER_POLL_INTERVAL);
                tracing::info!(permission.id = %id, tool = %asked.tool, "the agent asks for a permission");
            }
        }
        self.questions.push(question);
        (Some(Fact::Permission(Box::new(NewPermission { id, request: asked, expires_at, decision }))), chunks)
    }

    /// The tool has finished: its open questions are cancelled.
    pub fn finished(&mut self, tool_call: &str) -> Vec<Fact> {
        let over = self.questions.iter_mut().filter(|question| question.request.tool_call == tool_call);
        let over = over.filter(|question| !question.is_decided).map(|question| {
            question.decided(PermissionState::Cancelled);
            Fact::PermissionOver(question.id)
        });
        over.collect()
    }

    /// The agent withdrew a request. Returns what to store, and the chunks for readers.
    pub fn withdrawn(&mut self, request: &str, turn: &mut Turn) -> (Vec<Fact>, Vec<Chunk>) {
        let (mut facts, mut chunks) = (Vec::new(), Vec::new());
        for question in &mut self.questions {
            if !question.is_decided && question.request.request == request {
                question.decided(PermissionState::Cancelled);
                facts.push(Fact::PermissionOver(question.id));
                chunks.extend(turn.answered(&question.id.to_string(), true));
            }
        }
        (facts, chunks)
    }

    /// Takes the decisions that are stored by now. Returns the chunks for readers.
    fn heed(&mut self, asked: &[Permission], turn: &mut Turn, driver: &dyn Driver) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for question in self.questions.iter_mut().filter(|question| !question.is_decided) {
            let Some(permission) = asked.iter().find(|permission| permission.id == question.id) else { continue };
            let Some(decision) = permission.decision() else { continue };
            question.decided(permission.state);
            chunks.extend(turn.answered(&question.id.to_string(), decision.allows()));
            question.tell(&decision, driver, &mut self.untold);
            let (state, by) = (permission.state.as_str(), permission.answered_by.as_deref());
            tracing::info!(permission.id = %question.id, state, by, "permission decided");
        }
        self.look_at = self.is_waiting().then(|| Instant::now() + ANSWER_POLL_INTERVAL);
        chunks
    }
}

/// The decision of the policy. `None` if a person has to decide: also where it allows and the agent offers no way to do so.
fn decide(request: &PermissionRequest, rules: &Permissions) -> Option<Decision> {
    match rules.policy_for(request.kind) {
        Policy::Ask => None,
        Policy::Allow => request.decide(&Answer::Approved(true)),
        Policy::Deny => request.decide(&Answer::Approved(false)),
    }
}

impl Drive<'_> {
    /// Reads the answers from the store, and expires questions that were not answered in time.
    pub(super) async fn heed_answers(&mut self, driver: &dyn Driver) -> Result<(), Abandoned> {
        let (store, run) = (&self.shared.store, self.leased.lease.run);
        let now = store.clock().now();
        if self.prompts.open().any(|question| question.expires_at.is_some_and(|at| at <= now)) {
            self.retry_write(|| store.expire_permissions(run)).await?;
        }
        let open: Vec<_> = self.prompts.open().map(|question| question.id).collect();
        let asked = self.retry_write(|| store.permissions(&open)).await?;
        let chunks = self.prompts.heed(&asked, &mut self.turn, driver);
        self.append(chunks, Vec::new(), true).await
    }
}

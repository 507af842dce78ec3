//! What the agent of a run asks before it uses a tool: decided by the policy of the config or by the first who answers, and
//! told to the agent.
//!
//! Always: what is decided is stored before the agent is told, and whoever goes on with the run tells it again.

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

/// Whoever waits for an answer looks for it this often by itself.
const ANSWER_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What was asked in a turn.
#[derive(Default)]
pub(super) struct PermissionPrompts {
    questions: Vec<Question>,
    /// What the agent is to be told next.
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

    /// What the agent is to be told; what it asked for is not needed any more, and may be large.
    fn tell(&mut self, decision: &Decision, driver: &dyn Driver, untold: &mut VecDeque<String>) {
        untold.extend(driver.answer(&self.request, decision));
        self.request.input = serde_json::Value::Null;
    }
}

impl PermissionPrompts {
    /// What was asked while somebody else drove the run. What of it is decided is told at once, again or for the first time.
    pub fn again(asked: Vec<Permission>) -> Self {
        let questions = asked.into_iter().map(|asked| Question::new(asked.id, asked.request, asked.expires_at));
        let questions: Vec<_> = questions.collect();
        let look_at = (!questions.is_empty()).then(Instant::now);
        Self { questions, untold: VecDeque::new(), look_at }
    }

    /// Whether somebody has to answer.
    pub fn is_waiting(&self) -> bool {
        self.open().next().is_some()
    }

    /// Waits until there may be an answer.
    pub async fn look(&self, answers: &Notify) {
        tokio::select! {
            () = answers.notified() => {}
            () = sleep_until(self.look_at.unwrap_or_else(Instant::now)) => {}
        }
    }

    /// The run is settled, and with it what nobody answered.
    pub fn ended(&self) {
        let open = u64::try_from(self.open().count()).unwrap_or(u64::MAX);
        METRICS.permissions_decided(PermissionState::Cancelled).inc_by(open);
    }

    fn open(&self) -> impl Iterator<Item = &Question> {
        self.questions.iter().filter(|question| !question.is_decided)
    }

    /// The agent asks something. One that it asks again is the same question.
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

    /// A tool is done: nobody has to answer any more whether it may be used.
    pub fn finished(&mut self, tool_call: &str) -> Vec<Fact> {
        let over = self.questions.iter_mut().filter(|question| question.request.tool_call == tool_call);
        let over = over.filter(|question| !question.is_decided).map(|question| {
            question.decided(PermissionState::Cancelled);
            Fact::PermissionOver(question.id)
        });
        over.collect()
    }

    /// The agent asks no more what it asked. Answers with what is stored and what readers are told.
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

    /// Takes what is decided by now. Answers with what readers are told of it.
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

/// How the policy decides. Where it allows and the agent offers no way to do so, somebody has to look at it.
fn decide(request: &PermissionRequest, rules: &Permissions) -> Option<Decision> {
    match rules.policy_for(request.kind) {
        Policy::Ask => None,
        Policy::Allow => request.decide(&Answer::Approved(true)),
        Policy::Deny => request.decide(&Answer::Approved(false)),
    }
}

impl Drive<'_> {
    /// Looks for answers, and expires what nobody answered in time.
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

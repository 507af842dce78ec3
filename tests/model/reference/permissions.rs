//! Questions of agents, and every way in which they are decided.

use mainstay::lease::RunKey;
use mainstay::run::Status;

use super::{Model, index, key};
use crate::ops::{Answer, Ask};

/// How long a question may be open.
pub const OPEN_MS: i64 = 20_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Permission {
    pub run: RunKey,
    pub request: u8,
    pub state: &'static str,
    pub expires_at: Option<i64>,
    pub answered_at: Option<i64>,
}

impl Model {
    /// A repeated question is the same one.
    pub(super) fn ask(&mut self, run: RunKey, ask: Ask) {
        let Ask { request, by_policy } = ask;
        if self.permissions.iter().any(|asked| asked.run == run && asked.request == request) {
            return;
        }
        let (now, expires_at) = (self.now, (!by_policy).then_some(self.now + OPEN_MS));
        let (state, answered_at) = if by_policy { ("allowed", Some(now)) } else { ("pending", None) };
        self.permissions.push(Permission { run, request, state, expires_at, answered_at });
        let session = self.runs[index(run)].session;
        let is_passed = self.runs_of(session).any(|(_, run)| run.status == Status::Queued && run.front > 0);
        if !by_policy && is_passed {
            self.answer(key(self.permissions.len() - 1), false);
        }
    }

    fn decide(&mut self, state: &'static str, which: impl Fn(&Permission) -> bool) -> u64 {
        let now = self.now;
        let open = self.permissions.iter_mut().filter(|asked| asked.state == "pending" && which(asked));
        let closed = open.map(|asked| (asked.state, asked.answered_at) = (state, Some(now)));
        u64::try_from(closed.count()).unwrap()
    }

    pub(super) fn end_questions(&mut self, run: RunKey) {
        self.decide("cancelled", |asked| asked.run == run);
    }

    pub(super) fn expire_questions(&mut self, run: RunKey) -> Answer {
        let now = self.now;
        Answer::Count(self.decide("expired", |asked| asked.run == run && asked.expires_at.is_some_and(|at| at <= now)))
    }

    pub(super) fn answer(&mut self, permission: i64, approved: bool) -> Answer {
        let Some(run) = self.permissions.get(index(permission)).map(|asked| asked.run) else { return Answer::Unknown };
        self.expire_questions(run);
        let asked = &mut self.permissions[index(permission)];
        let is_first = asked.state == "pending";
        if is_first {
            asked.state = if approved { "allowed" } else { "denied" };
            asked.answered_at = Some(self.now);
        }
        Answer::Decided { state: asked.state, is_first }
    }
}

//! Permissions: what agents ask for before they use a tool, and how it is answered.

use super::feed::{Follower, Pause};
use super::{Engine, EngineError, not_found};
use crate::event::Seq;
use crate::id::{PermissionId, RunId, SessionId};
use crate::permission::{Answer, Permission};
use crate::store::event::Range;
use crate::store::permission::{Answered, GiveAnswer, PermissionFilter, PermissionPage};
use crate::text::{given_line, given_text};

/// Events in one read of a run.
const PAGE: i64 = 1000;
/// Longest name of the person who answers, and longest reason, in characters.
const MAX_BY_CHARS: usize = 200;
const MAX_REASON_CHARS: usize = 4000;

/// Where the stream of a chat continues once its questions are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paused {
    /// The run that asked.
    pub run: RunId,
    /// The last event that the client which answers has seen.
    pub after: Seq,
}

impl Engine {
    /// A page of permissions, which ends earlier when they are large.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn permission_page(&self, filter: &PermissionFilter, limit: i64) -> Result<PermissionPage, EngineError> {
        Ok(self.shared.store.permission_page(filter, limit).await?)
    }

    /// The newest permissions, each with the cursor behind it.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_permissions(
        &self,
        filter: &PermissionFilter,
        limit: i64,
    ) -> Result<Vec<(i64, Permission)>, EngineError> {
        Ok(self.shared.store.list_permissions(filter, limit).await?)
    }

    /// A permission.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn permission(&self, id: PermissionId) -> Result<Permission, EngineError> {
        self.shared.store.find_permission(id).await?.ok_or_else(|| not_found("permission", id))
    }

    /// Answers a permission request in the name of `by` (1–200 characters), with a `reason` of at most 4000 characters. The
    /// first answer counts; repeating it changes nothing.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Decided`] when it was decided otherwise, [`EngineError::NotOffered`],
    /// [`EngineError::InvalidValue`], [`EngineError::Store`].
    pub async fn answer_permission(
        &self,
        id: PermissionId,
        answer: Answer,
        by: &str,
        reason: Option<String>,
    ) -> Result<Permission, EngineError> {
        let by = &given_line("by", by, MAX_BY_CHARS)?;
        let reason = reason.map(|reason| given_text("reason", &reason, MAX_REASON_CHARS)).transpose()?;
        let given = GiveAnswer { id, answer: answer.clone(), by: by.clone(), reason };
        match self.shared.store.answer_permission(given).await?.ok_or_else(|| not_found("permission", id))? {
            Answered::Decided(permission) => {
                let (run, state) = (permission.run_id, permission.state.as_str());
                tracing::info!(permission.id = %id, run.id = %run, state, by, "permission answered");
                Ok(permission)
            }
            Answered::Before(permission) if permission.agrees_with(&answer) => Ok(permission),
            Answered::Before(permission) => Err(EngineError::Decided(Box::new(permission))),
            Answered::NotOffered(permission) => Err(EngineError::NotOffered(Box::new(permission))),
        }
    }

    /// Where the stream of the chat ended that asked for these permissions of one session: all of them had been asked, and the
    /// run waited for nothing but answers.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] when one of them is not there or of another session, [`EngineError::InvalidValue`] for
    /// none, or some of several runs, [`EngineError::Store`].
    pub async fn paused_at(&self, session: &SessionId, asked: &[PermissionId]) -> Result<Paused, EngineError> {
        let mut run = None;
        for id in asked {
            let permission = self.permission(*id).await?;
            if permission.session_id != *session {
                return Err(not_found("permission", id));
            }
            if *run.get_or_insert(permission.run_id) != permission.run_id {
                return Err(EngineError::InvalidValue("the answers are for several runs".into()));
            }
        }
        let run = run.ok_or_else(|| EngineError::InvalidValue("nothing is answered".into()))?;
        let mut unseen: Vec<String> = asked.iter().map(ToString::to_string).collect();
        let (mut pause, mut after, mut asked_at) = (Pause::default(), 0, 0);
        loop {
            let events = self.run_event_page(run, after, PAGE).await?.events;
            let Some(last) = events.last() else { return Ok(Paused { run, after: asked_at }) };
            after = last.seq;
            for event in &events {
                let json = event.event.get();
                let questions = pause.take_json(json);
                if !unseen.is_empty() && json.starts_with(r#"{"type":"tool-approval-request","#) {
                    unseen.retain(|id| !json.contains(id));
                    asked_at = event.seq;
                }
                if unseen.is_empty() && questions.is_some() {
                    return Ok(Paused { run, after: event.seq });
                }
            }
        }
    }

    /// Follows a run from a cursor as the AI SDK's chat does: to its end, or to where a person has to answer.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn follow_chat(&self, id: RunId, after: Seq) -> Result<Follower, EngineError> {
        let follower = self.follow_run(id, after).await?;
        let located = self.locate(id).await?;
        let mut pause = Pause::default();
        let mut read = located.run.first_seq.map_or(after, |first_seq| first_seq - 1);
        while read < after {
            let limit = PAGE.min(after - read);
            let range = Range { session: located.session, run: Some(located.key), after: read, limit };
            let events = self.shared.store.event_page(range).await?.events;
            for event in events.iter().filter(|event| event.seq <= after) {
                pause.take_json(event.event.get());
            }
            match events.last() {
                Some(last) => read = last.seq,
                None => break,
            }
        }
        Ok(follower.pausing(pause))
    }
}

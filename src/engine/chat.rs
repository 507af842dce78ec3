//! Chats: which run a page resumes, and the answers that come with a message.

use super::{Engine, EngineError, PermissionFilter, not_found};
use crate::event::Seq;
use crate::id::{MessageId, PermissionId, RunId, SessionId};
use crate::permission::{Answer, PermissionState};

/// What a client has of a chat that it resumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeFrom {
    /// A run.
    Run(RunId),
    /// The message that a run answers, or answers with.
    Message(MessageId),
}

/// An answer to what an agent asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenAnswer {
    /// The question.
    pub id: PermissionId,
    /// Yes or no.
    pub approved: bool,
    /// Why.
    pub reason: Option<String>,
}

impl Engine {
    /// The run whose stream a chat client is to get: the one that it names; else the one at its cursor, unless it has all of
    /// that; else the current run of the session. `None` if there is nothing more.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] for a session, run or message that is not there, [`EngineError::CursorAhead`],
    /// [`EngineError::Store`].
    pub async fn chat_run(
        &self,
        session: &SessionId,
        from: Option<ResumeFrom>,
        after: Seq,
    ) -> Result<Option<RunId>, EngineError> {
        let key = self.session_key(session).await?;
        let store = &self.shared.store;
        match from {
            Some(ResumeFrom::Run(id)) => match self.run(id).await? {
                run if run.session_id == *session => Ok(Some(id)),
                _ => Err(not_found("run", id)),
            },
            Some(ResumeFrom::Message(id)) => match store.find_run_of_message(key, &id).await? {
                Some(run) => Ok(Some(run.run.id)),
                None => Err(not_found("message", id)),
            },
            None => {
                self.check_cursor(key, after).await?;
                if let Some(located) = store.find_run_at(key, after).await?
                    && (!located.run.status.is_settled() || located.run.last_seq.is_some_and(|last| last > after))
                {
                    return Ok(Some(located.run.id));
                }
                Ok(store.find_current_run(key).await?.map(|located| located.run.id))
            }
        }
    }

    /// Whether a session's agent waits for an answer.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn is_asking(&self, session: &SessionId) -> Result<bool, EngineError> {
        let (state, session) = (Some(PermissionState::Pending), Some(session.clone()));
        let filter = PermissionFilter { state, session, run: None, before: None };
        Ok(!self.list_permissions(&filter, 1).await?.is_empty())
    }

    /// Those of these answers that a session's agent waits for. Other answers in a history were decided before or belong
    /// elsewhere.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn open_answers(
        &self,
        session: &SessionId,
        answers: Vec<GivenAnswer>,
    ) -> Result<Vec<GivenAnswer>, EngineError> {
        if answers.is_empty() {
            return Ok(answers);
        }
        let ids: Vec<_> = answers.iter().map(|answer| answer.id).collect();
        let asked = self.shared.store.permissions(&ids).await?;
        let is_open = |answer: &GivenAnswer| {
            let asked = asked.iter().find(|asked| asked.id == answer.id);
            asked.is_some_and(|asked| asked.session_id == *session && asked.state == PermissionState::Pending)
        };
        Ok(answers.into_iter().filter(is_open).collect())
    }

    /// Gives these answers; returns whether any of them counted. One that cannot be given is skipped: it stays in the history
    /// that comes with every message.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn answer_all(&self, answers: Vec<GivenAnswer>, by: &str) -> Result<bool, EngineError> {
        let mut is_answered = false;
        for GivenAnswer { id, approved, reason } in answers {
            match self.answer_permission(id, Answer::Approved(approved), by, reason).await {
                Ok(_) => is_answered = true,
                // Another client was faster.
                Err(EngineError::Decided(_)) => {}
                Err(error @ (EngineError::NotOffered(_) | EngineError::InvalidValue(_))) => {
                    tracing::info!(permission.id = %id, %error, "answer in a chat ignored");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(is_answered)
    }
}

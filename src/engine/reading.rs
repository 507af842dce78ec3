//! Reading: runs and the log, in pages or followed live.

use super::feed::{Follower, Scope};
use super::{Engine, EngineError, RunFilter};
use crate::event::{Event, Seq};
use crate::id::{RunId, SessionId};
use crate::lease::SessionKey;
use crate::run::Run;
use crate::store::event::Range;

impl Engine {
    /// A run.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn run(&self, id: RunId) -> Result<Run, EngineError> {
        Ok(self.locate(id).await?.run)
    }

    /// What the agent of a run wrote to stderr, and a sample of its lines that were no event.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn run_diagnostics(&self, id: RunId) -> Result<(Option<String>, Option<String>), EngineError> {
        Ok(self.shared.store.run_diagnostics(self.locate(id).await?.key).await?)
    }

    /// A page of runs, newest first, each with the cursor behind it.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_runs(&self, filter: &RunFilter, limit: i64) -> Result<Vec<(i64, Run)>, EngineError> {
        let runs = self.shared.store.list_runs(filter, limit).await?;
        Ok(runs.into_iter().map(|located| (located.key, located.run)).collect())
    }

    /// What a session is at: its running run, else the next in its queue.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn current_run(&self, id: &SessionId) -> Result<Option<Run>, EngineError> {
        let key = self.session_key(id).await?;
        Ok(self.shared.store.find_current_run(key).await?.map(|located| located.run))
    }

    /// A page of a run's events behind a cursor, oldest first.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn run_events(&self, id: RunId, after: Seq, limit: i64) -> Result<Vec<Event>, EngineError> {
        let located = self.locate(id).await?;
        self.check_cursor(located.session, after).await?;
        let Some(first_seq) = located.run.first_seq else { return Ok(Vec::new()) };
        let after = after.max(first_seq - 1);
        Ok(self.shared.store.events(Range { session: located.session, run: Some(located.key), after, limit }).await?)
    }

    /// A page of a session's events behind a cursor, oldest first.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn session_events(&self, id: &SessionId, after: Seq, limit: i64) -> Result<Vec<Event>, EngineError> {
        let session = self.session_key(id).await?;
        self.check_cursor(session, after).await?;
        Ok(self.shared.store.events(Range { session, run: None, after, limit }).await?)
    }

    /// Follows a run from a cursor to its end: replay, then live.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn follow_run(&self, id: RunId, after: Seq) -> Result<Follower, EngineError> {
        let located = self.locate(id).await?;
        self.check_cursor(located.session, after).await?;
        let after = after.max(located.run.first_seq.unwrap_or(0) - 1).max(0);
        let scope = Scope::Run { key: located.key, id };
        Ok(Follower::new(&self.shared.feed, self.shared.store.clone(), located.session, scope, after))
    }

    /// Follows a session from a cursor, across its runs, for ever.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn follow_session(&self, id: &SessionId, after: Seq) -> Result<Follower, EngineError> {
        let session = self.session_key(id).await?;
        self.check_cursor(session, after).await?;
        Ok(Follower::new(&self.shared.feed, self.shared.store.clone(), session, Scope::Session, after))
    }

    async fn check_cursor(&self, session: SessionKey, after: Seq) -> Result<(), EngineError> {
        let last_seq = self.shared.store.last_seqs(&[session]).await?.first().map_or(0, |(_, last_seq)| *last_seq);
        if (0..=last_seq).contains(&after) { Ok(()) } else { Err(EngineError::CursorAhead { after, last_seq }) }
    }
}

//! Reading: slots, workers, ids by their prefix, runs and the log, in pages or followed live.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::feed::{Follower, Scope};
use super::{Engine, EngineError, RunFilter};
use crate::event::{Event, Seq};
use crate::id::{RunId, SessionId};
use crate::lease::{RunKey, SessionKey};
use crate::message::{attachments, prompt};
use crate::process::reap;
use crate::run::Run;
use crate::slot::Slot;
use crate::store::event::{EventPage, Range};
use crate::store::run::RunRow;
use crate::store::short_id::IdKind;
use crate::waiting::WaitsFor;
use crate::worker::Worker;

/// Poll interval while waiting for a session to appear, in case a signal was lost.
const APPEARANCE_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Shortest pause between two polls for it. Under load there are hundreds of commits a second, and many readers may wait; what
/// they miss meanwhile they get as a replay.
const APPEARANCE_POLL_PAUSE: Duration = Duration::from_millis(100);

/// The time in an id of ours, to the millisecond: what is made later differs within it.
const MIN_CHARS: usize = 13;
/// The length of a UUID as text.
const UUID_CHARS: usize = 36;

impl Engine {
    /// Where the database is, its symlinks resolved.
    pub fn path(&self) -> &Path {
        self.shared.store.path()
    }

    /// The slots of all pools.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_slots(&self) -> Result<Vec<Slot>, EngineError> {
        Ok(self.shared.store.list_slots().await?)
    }

    /// The processes that execute runs.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_workers(&self) -> Result<Vec<Worker>, EngineError> {
        Ok(self.shared.store.list_workers().await?)
    }

    /// The ids with this prefix, at most `limit` of each kind.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn ids_beginning_with(&self, prefix: &str, limit: i64) -> Result<Vec<(IdKind, String)>, EngineError> {
        Ok(self.shared.store.ids_beginning_with(prefix, limit).await?)
    }

    /// How many characters of each of some UUIDs tell it apart from every other id that is stored.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn short_id_chars(&self, ids: &[String]) -> Result<usize, EngineError> {
        let neighbours = self.shared.store.neighbours_of_ids(ids).await?;
        let needed = neighbours.iter().map(|(id, other)| 1 + common_chars(id, other)).max().unwrap_or(0);
        Ok(needed.clamp(MIN_CHARS, UUID_CHARS))
    }

    /// A run.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn run(&self, id: RunId) -> Result<Run, EngineError> {
        self.with_reason(self.locate(id).await?).await
    }

    /// A run together with what it waits for.
    pub(super) async fn with_reason(&self, located: RunRow) -> Result<Run, EngineError> {
        let run = located.run.clone();
        Ok(self.with_reasons(vec![located]).await?.pop().map_or(run, |(_, run)| run))
    }

    /// Runs together with what they wait for: the one place that determines it.
    async fn with_reasons(&self, mut runs: Vec<RunRow>) -> Result<Vec<(RunKey, Run)>, EngineError> {
        let unsettled: Vec<_> = runs.iter().filter(|l| !l.run.status.is_settled()).map(|l| l.key).collect();
        if !unsettled.is_empty() {
            let agents = self.shared.config.agents.values();
            let most = agents.map(|agent| (agent.name.clone(), agent.max_concurrent)).collect();
            let mut reasons = self.shared.store.waits_for(&unsettled, &most).await?;
            let lacks_worker = reasons.values().any(|reason| *reason == WaitsFor::Worker);
            if lacks_worker && !self.shared.executing.executes() && !self.is_executed_elsewhere().await? {
                reasons.values_mut().filter(|reason| **reason == WaitsFor::Worker).for_each(|r| *r = WaitsFor::Daemon);
            }
            runs.iter_mut().for_each(|located| located.run.waits_for = reasons.remove(&located.key));
        }
        Ok(runs.into_iter().map(|located| (located.key, located.run)).collect())
    }

    /// What the agent of a run wrote to stderr, and a sample of its lines that were no event.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn run_diagnostics(&self, id: RunId) -> Result<(Option<String>, Option<String>), EngineError> {
        Ok(self.shared.store.run_diagnostics(self.locate(id).await?.key).await?)
    }

    /// The message that a run answers, as a person reads it: the names of its files in brackets, then its text.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn question_of_run(&self, id: RunId) -> Result<String, EngineError> {
        let parts = self.shared.store.message_of_run(id).await?.unwrap_or_default();
        let parts: Vec<serde_json::Value> = serde_json::from_str(&parts).unwrap_or_default();
        let files = attachments(&parts).into_iter().map(|file| format!("[{}]", file.label()));
        Ok(files.chain([prompt(&parts)]).filter(|said| !said.is_empty()).collect::<Vec<_>>().join(" "))
    }

    /// A page of runs, newest first, each with the cursor behind it.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_runs(&self, filter: &RunFilter, limit: i64) -> Result<Vec<(i64, Run)>, EngineError> {
        self.with_reasons(self.shared.store.list_runs(filter, limit).await?).await
    }

    /// The current run of a session: the running one, else the next in its queue.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn current_run(&self, id: &SessionId) -> Result<Option<Run>, EngineError> {
        let key = self.session_key(id).await?;
        match self.shared.store.find_current_run(key).await? {
            Some(located) => Ok(Some(self.with_reason(located).await?)),
            None => Ok(None),
        }
    }

    /// A run's events behind a cursor, oldest first, up to `limit` of them.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn run_events(&self, id: RunId, after: Seq, limit: i64) -> Result<Vec<Event>, EngineError> {
        match self.range_of_run(id, after, limit).await? {
            Some(range) => Ok(self.shared.store.events(range).await?),
            None => Ok(Vec::new()),
        }
    }

    /// The same as a page, which ends earlier when the events are large.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn run_event_page(&self, id: RunId, after: Seq, limit: i64) -> Result<EventPage, EngineError> {
        match self.range_of_run(id, after, limit).await? {
            Some(range) => Ok(self.shared.store.event_page(range).await?),
            None => Ok(EventPage::default()),
        }
    }

    /// The same without the text of an event that fills a page of its own: that is read in pieces.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn run_event_page_without_large(
        &self,
        id: RunId,
        after: Seq,
        limit: i64,
    ) -> Result<EventPage, EngineError> {
        match self.range_of_run(id, after, limit).await? {
            Some(range) => Ok(self.shared.store.event_page_without_large(range).await?),
            None => Ok(EventPage::default()),
        }
    }

    async fn range_of_run(&self, id: RunId, after: Seq, limit: i64) -> Result<Option<Range>, EngineError> {
        let located = self.locate(id).await?;
        self.check_cursor(located.session, after).await?;
        let range = |first_seq: Seq| Range {
            session: located.session,
            run: Some(located.key),
            after: after.max(first_seq - 1),
            limit,
        };
        Ok(located.run.first_seq.map(range))
    }

    /// A session's events behind a cursor, oldest first, up to `limit` of them.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn session_events(&self, id: &SessionId, after: Seq, limit: i64) -> Result<Vec<Event>, EngineError> {
        let session = self.session_key(id).await?;
        self.check_cursor(session, after).await?;
        Ok(self.shared.store.events(Range { session, run: None, after, limit }).await?)
    }

    /// The same as a page, which ends earlier when the events are large, without the text of an event that fills a page of its
    /// own: that is read in pieces.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn session_event_page_without_large(
        &self,
        id: &SessionId,
        after: Seq,
        limit: i64,
    ) -> Result<EventPage, EngineError> {
        let session = self.session_key(id).await?;
        self.check_cursor(session, after).await?;
        Ok(self.shared.store.event_page_without_large(Range { session, run: None, after, limit }).await?)
    }

    /// Follows a run from a cursor to its end: replay, then live.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::CursorAhead`], [`EngineError::Store`].
    pub async fn follow_run(&self, id: RunId, after: Seq) -> Result<Follower, EngineError> {
        let located = self.locate(id).await?;
        self.check_cursor(located.session, after).await?;
        // The span of a run that has not begun comes after what the session holds: nothing before that is read. Queried in
        // this order, because the run may begin in between.
        let newest = self.last_seq(located.session).await?;
        let begins_behind = self.locate(id).await?.run.first_seq.map_or(newest, |first_seq| first_seq - 1);
        let after = after.max(begins_behind);
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

    /// Waits until there is a session with this id, whichever process creates it.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn session_appears(&self, id: &SessionId) -> Result<(), EngineError> {
        let mut changes = self.shared.feed.changes();
        loop {
            // Marked before the query: a commit after it ends the wait.
            changes.mark_unchanged();
            let looked = Instant::now();
            if self.shared.store.find_session_key(id).await?.is_some() {
                return Ok(());
            }
            // The feed lives as long as this engine.
            let _ = tokio::time::timeout(APPEARANCE_POLL_INTERVAL, changes.changed()).await;
            tokio::time::sleep_until(looked + APPEARANCE_POLL_PAUSE).await;
        }
    }

    pub(super) async fn check_cursor(&self, session: SessionKey, after: Seq) -> Result<(), EngineError> {
        let last_seq = self.last_seq(session).await?;
        if (0..=last_seq).contains(&after) { Ok(()) } else { Err(EngineError::CursorAhead { after, last_seq }) }
    }

    async fn last_seq(&self, session: SessionKey) -> Result<Seq, EngineError> {
        Ok(self.shared.store.last_seqs(&[session]).await?.first().map_or(0, |(_, last_seq)| *last_seq))
    }
}

fn common_chars(one: &str, other: &str) -> usize {
    one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count()
}

impl Engine {
    /// Whether some process on this file executes runs now: its heartbeat is fresh, and it is not proven dead.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn is_executed_elsewhere(&self) -> Result<bool, EngineError> {
        let silent_since = self.now() - self.shared.config.engine.lease;
        let workers = self.shared.store.registered_workers().await?;
        Ok(workers.iter().any(|worker| {
            let alive = reap::is_alive(&worker.process);
            let is_other = self.shared.worker.get().is_none_or(|own| own.key != worker.key);
            is_other && worker.capacity > 0 && worker.heartbeat_at > silent_since && alive != reap::Liveness::Dead
        }))
    }
}

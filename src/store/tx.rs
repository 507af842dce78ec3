//! A write transaction, and the notices that it publishes in the process after its commit.

use std::sync::Arc;

use sqlx::SqliteConnection;

use super::StoreError;
use crate::clock::Timestamp;
use crate::event::Seq;
use crate::id::RunId;
use crate::lease::{RunKey, SessionKey};

/// Rows of one run that were committed together, as their readers get them.
#[derive(Debug)]
pub struct Committed {
    /// The session.
    pub session: SessionKey,
    /// The run.
    pub run_id: RunId,
    /// When they were committed.
    pub at: Timestamp,
    /// The `seq` of the first one.
    pub first_seq: Seq,
    /// The chunks, as JSON; at least one.
    pub events: Arc<Vec<String>>,
    /// Whether these are the last of the run.
    pub ends_run: bool,
}

impl Committed {
    /// Rows that were committed.
    pub fn new(
        session: SessionKey,
        run_id: RunId,
        at: Timestamp,
        first_seq: Seq,
        events: impl Into<Arc<Vec<String>>>,
        ends_run: bool,
    ) -> Self {
        Self { session, run_id, at, first_seq, events: events.into(), ends_run }
    }
}

/// A change by a commit that tasks of this process may wait for.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Events, in full.
    EventsCommitted(Arc<Committed>),
    /// Events to be read from the store.
    EventsAppended(SessionKey),
    /// A run may have become ready to be claimed.
    Ready,
    /// Runs of a session that was closed may be left to cancel, now that its running run has ended.
    Closing,
    /// A cancel was requested of a running run.
    CancelRequested(RunKey),
    /// A warm backend changed.
    Backends,
    /// A permission of this run was decided.
    PermissionAnswered(RunKey),
}

/// An open write transaction.
pub struct Tx<'c> {
    /// The connection; inside `BEGIN IMMEDIATE`.
    pub(super) conn: &'c mut SqliteConnection,
    /// The time of the whole transaction.
    pub now: Timestamp,
    /// Published after the commit; dropped if it fails.
    pub(super) notices: Vec<Notice>,
}

impl Tx<'_> {
    /// Limits further growth of the file to `pages` pages, or removes the limit; returns the limit. Simulates a full disk.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn limit_pages(&mut self, pages: Option<u32>) -> Result<i64, StoreError> {
        let count: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut *self.conn).await?;
        let limit = pages.map_or(i64::from(u32::MAX - 1), |pages| count + i64::from(pages));
        let pragma = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {limit}"));
        Ok(sqlx::query_scalar(pragma).fetch_one(&mut *self.conn).await?)
    }
}

//! The table `events`: append, guarded by the lease, and reading from a cursor.
//!
//! Always: memory is bounded by the events passed in plus a few copies of one statement's share of them.

mod chunks;

use std::sync::Arc;

use serde_json::value::RawValue;

use super::fact::{self, Fact};
use super::large::{LargeText, PAGE_BYTES};
use super::message::Response;
use super::tx::{Committed, Notice, Tx};
use super::{Store, StoreError, text};
use crate::clock::Timestamp;
use crate::event::{Event, Seq};
use crate::lease::{Lease, LeaseLost, RunKey, SessionKey};

/// Events of an agent, to be appended to its run.
#[derive(Debug, Clone)]
pub struct Append {
    /// The lease that permits it.
    pub lease: Lease,
    /// The session that the run belongs to.
    pub session: SessionKey,
    /// The run, as readers know it.
    pub run_id: crate::id::RunId,
    /// The chunks, as JSON; shared with live readers.
    pub events: Arc<Vec<String>>,
    /// Whether one of them counts as output: is neither `start` nor transient.
    pub said: bool,
    /// Position in the agent's output up to which events were made.
    pub source_offset: i64,
    /// The message so far, as JSON parts; stored from time to time while the run is running.
    pub parts: Option<Arc<str>>,
    /// What the agent reported besides its message.
    pub facts: Vec<Fact>,
}

/// The position of committed events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The newest event of the run.
    pub last_seq: Seq,
}

/// Chunks of one run, and the condition of their insertion.
pub(super) struct Guarded<'a> {
    pub lease: Lease,
    pub unless_cancelled: bool,
    pub events: &'a [String],
}

/// Maximum event text of one statement. SQLite makes a few copies of its parameters; larger statements are not faster.
const STATEMENT_BYTES: usize = 512 * 1024;

/// The chunks of several runs as JSON, `[run, token, unless_cancelled, skip, [chunk, …]], …`: SQLite reads all of them in one
/// statement. The first `skip` events of the run are inserted by an earlier statement.
#[derive(Default)]
struct BatchJson(String);

impl BatchJson {
    /// Adds as many of the chunks as fit; returns their number.
    fn add(&mut self, one: &Guarded<'_>, skip: usize) -> usize {
        let mut room = STATEMENT_BYTES.saturating_sub(self.0.len());
        let fits = one.events[skip..].iter().take_while(|event| match room.checked_sub(event.len() + 1) {
            Some(left) => {
                room = left;
                true
            }
            None => false,
        });
        let fits = fits.count();
        if fits > 0 {
            let (run, token, unless_cancelled) = (one.lease.run, one.lease.token, u8::from(one.unless_cancelled));
            let separator = if self.0.is_empty() { '[' } else { ',' };
            self.0.push_str(&format!("{separator}[{run},{token},{unless_cancelled},{skip},["));
            for (index, event) in one.events[skip..skip + fits].iter().enumerate() {
                if index > 0 {
                    self.0.push(',');
                }
                self.0.push_str(event);
            }
            self.0.push_str("]]");
        }
        fits
    }

    async fn insert(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.push(']');
        let (batch, now): (Arc<str>, _) = (std::mem::take(&mut self.0).into(), tx.now.as_millis());
        sqlx::query!(
            "INSERT INTO events (session_key, seq, run_key, at, event)
             SELECT r.session_key, r.last_seq + 1 + (b.value ->> 3) + e.key, r.key, ?2, e.value
             FROM jsonb_each(?1) b
             JOIN runs r ON r.key = b.value ->> 0 AND r.lease_token = b.value ->> 1 AND r.status = 'running'
                 AND (b.value ->> 2 = 0 OR r.cancel_requested_at IS NULL)
             JOIN json_each(b.value, '$[4]') e",
            batch,
            now
        )
        .execute(&mut *tx.conn)
        .await?;
        Ok(())
    }
}

/// Inserts the chunks of all runs whose lease is still valid, after the newest event of each run.
pub(super) async fn insert_guarded(tx: &mut Tx<'_>, batch: &[Guarded<'_>]) -> Result<(), StoreError> {
    let mut json = BatchJson::default();
    for one in batch {
        let mut done = 0;
        while let Some(next) = one.events.get(done) {
            match json.add(one, done) {
                0 if json.0.is_empty() => {
                    insert_large(tx, one, done, next).await?;
                    done += 1;
                }
                0 => json.insert(tx).await?,
                added => done += added,
            }
        }
    }
    json.insert(tx).await
}

/// Inserts one event that is larger than a statement's share directly, without parsing it as JSON again.
async fn insert_large(tx: &mut Tx<'_>, one: &Guarded<'_>, skip: usize, event: &str) -> Result<(), StoreError> {
    let (run, token, now) = (one.lease.run, one.lease.token, tx.now.as_millis());
    let skip = i64::try_from(skip).unwrap_or(i64::MAX);
    let unless_cancelled = one.unless_cancelled;
    sqlx::query!(
        "INSERT INTO events (session_key, seq, run_key, at, event)
         SELECT session_key, last_seq + 1 + ?4, key, ?5, ?6 FROM runs
         WHERE key = ?1 AND lease_token = ?2 AND status = 'running' AND (?3 = 0 OR cancel_requested_at IS NULL)",
        run,
        token,
        unless_cancelled,
        skip,
        now,
        event
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(())
}

/// Executes all appends of a transaction: two statements, whatever the number of appends; more only for more bytes.
pub(super) async fn append_all(
    tx: &mut Tx<'_>,
    appends: &[Append],
) -> Result<Vec<Result<Appended, LeaseLost>>, StoreError> {
    if appends.is_empty() {
        return Ok(Vec::new());
    }
    let guarded = appends.iter().map(|a| Guarded { lease: a.lease, unless_cancelled: false, events: &a.events });
    insert_guarded(tx, &guarded.collect::<Vec<_>>()).await?;
    let heads: Vec<_> = appends
        .iter()
        .map(|a| (a.lease.run, a.lease.token, a.events.len(), a.source_offset, i64::from(a.said)))
        .collect();
    let heads = serde_json::to_string(&heads).map_err(|e| StoreError::Invalid(e.to_string()))?;
    let rows = sqlx::query!(
        r#"UPDATE runs SET last_seq = last_seq + b.n, source_offset = b.source_offset, said = max(runs.said, b.said),
               failures = iif(b.source_offset > runs.source_offset, 0, failures)
           FROM (SELECT value ->> 0 AS run, value ->> 1 AS token, value ->> 2 AS n, value ->> 3 AS source_offset,
                        value ->> 4 AS said FROM jsonb_each(?1)) b
           WHERE runs.key = b.run AND runs.lease_token = b.token AND runs.status = 'running'
           RETURNING key AS "key!", last_seq AS "last_seq!""#,
        heads
    )
    .fetch_all(&mut *tx.conn)
    .await?;
    let last_seq_of = |run: RunKey| rows.iter().find(|row| row.key == run).map(|row| row.last_seq);
    let snapshots = appends.iter().filter(|a| a.parts.is_some() && last_seq_of(a.lease.run).is_some());
    let snapshots =
        snapshots.filter_map(|a| Some(Response { run: a.lease.run, parts: a.parts.as_ref()?, ending: None }));
    super::message::store_responses(tx, snapshots).await?;
    let mut results = Vec::with_capacity(appends.len());
    for append in appends {
        results.push(match last_seq_of(append.lease.run) {
            Some(last_seq) => {
                fact::store(tx, append.lease.run, append.session, &append.facts).await?;
                let count = Seq::try_from(append.events.len()).unwrap_or(Seq::MAX);
                if count > 0 {
                    let (first_seq, events) = (last_seq - count + 1, append.events.clone());
                    let committed = Committed::new(append.session, append.run_id, tx.now, first_seq, events, false);
                    tx.notices.push(Notice::EventsCommitted(committed.into()));
                }
                Ok(Appended { last_seq })
            }
            None => Err(LeaseLost),
        });
    }
    Ok(results)
}

/// The part of a session's log to read.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// The session.
    pub session: SessionKey,
    /// Only events of this run.
    pub run: Option<RunKey>,
    /// Only events after this one.
    pub after: Seq,
    /// Maximum number of events.
    pub limit: i64,
}

/// The next part of a stream.
#[derive(Debug)]
pub enum Frames {
    /// Events, already as the text of an SSE stream.
    Events {
        /// `id:` and `data:` lines, event by event.
        text: String,
        /// The newest event in it.
        last_seq: Seq,
    },
    /// An event that is larger than the requested bytes.
    Large {
        /// Its `seq`.
        seq: Seq,
        /// Its text.
        text: LargeText,
    },
}

/// A page of events.
#[derive(Debug, Default)]
pub struct EventPage {
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// Whether the range has more events.
    pub more: bool,
    /// The text of the page's only event, which is null in `events`, if it is large and was not to be read as a whole.
    pub large: Option<LargeText>,
}

/// The end of a page.
struct PageEnd {
    seq: Seq,
    bytes: i64,
    more: bool,
}

impl Store {
    /// Events after a cursor, oldest first, whatever their size.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn events(&self, range: Range) -> Result<Vec<Event>, StoreError> {
        let (mut all, mut rest) = (Vec::new(), range);
        loop {
            let page = self.event_page(rest).await?;
            all.extend(page.events);
            match all.last() {
                Some(last) if page.more => rest.after = last.seq,
                _ => return Ok(all),
            }
            rest.limit = range.limit - i64::try_from(all.len()).unwrap_or(i64::MAX);
            if rest.limit <= 0 {
                return Ok(all);
            }
        }
    }

    /// A page of events after a cursor, oldest first: one, or as many as fit.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn event_page(&self, range: Range) -> Result<EventPage, StoreError> {
        match self.end_of_page(range, PAGE_BYTES).await? {
            Some(end) => self.load_page(range, end).await,
            None => Ok(EventPage::default()),
        }
    }

    /// The same, without the text of an event that fills a page of its own.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn event_page_without_large(&self, range: Range) -> Result<EventPage, StoreError> {
        match self.end_of_page(range, PAGE_BYTES).await? {
            Some(end) if end.bytes > PAGE_BYTES => self.head_of_large(range, end).await,
            Some(end) => self.load_page(range, end).await,
            None => Ok(EventPage::default()),
        }
    }

    async fn head_of_large(&self, range: Range, end: PageEnd) -> Result<EventPage, StoreError> {
        // SQLite reads the whole row to find it.
        let _turn = self.large.turn().await;
        let head = sqlx::query!(
            "SELECT e.at, r.id AS run_id FROM events e JOIN runs r ON r.key = e.run_key
             WHERE e.session_key = ?1 AND e.seq = ?2",
            range.session,
            end.seq
        );
        let head = head.fetch_one(&self.readers).await?;
        let at = Timestamp::from_millis(head.at);
        let event = Event { seq: end.seq, at, run_id: head.run_id.parse()?, event: RawValue::NULL.to_owned() };
        let text = LargeText::of_event(self, range.session, end.seq, end.bytes);
        Ok(EventPage { events: vec![event], more: end.more, large: Some(text) })
    }

    async fn load_page(&self, range: Range, end: PageEnd) -> Result<EventPage, StoreError> {
        let _turn = self.large.turn_for(end.bytes).await;
        let rows = sqlx::query!(
            r#"SELECT e.seq, e.at, e.event, r.id AS run_id FROM events e JOIN runs r ON r.key = e.run_key
               WHERE e.session_key = ?1 AND e.seq > ?2 AND e.seq <= ?4 AND (?3 IS NULL OR e.run_key = ?3) ORDER BY e.seq"#,
            range.session,
            range.after,
            range.run,
            end.seq
        )
        .fetch_all(&self.readers)
        .await?;
        let events = rows.into_iter().map(|row| {
            Ok(Event {
                seq: row.seq,
                at: Timestamp::from_millis(row.at),
                run_id: row.run_id.parse()?,
                event: text::raw(row.event)?,
            })
        });
        Ok(EventPage { events: events.collect::<Result<_, StoreError>>()?, more: end.more, large: None })
    }

    /// The end of a page of the range with at most `max_bytes`, or one event; `None` when the range is empty. The sizes are in
    /// the row headers: no event is loaded for them.
    async fn end_of_page(&self, range: Range, max_bytes: i64) -> Result<Option<PageEnd>, StoreError> {
        let row = sqlx::query!(
            r#"SELECT max(seq) FILTER (WHERE fits) AS "end: Seq", max(bytes) FILTER (WHERE fits) AS "bytes: i64",
                   max(seq) AS "last: Seq"
               FROM (SELECT seq, bytes, number = 1 OR (bytes <= ?5 AND number <= ?4) AS fits
                     FROM (SELECT seq, row_number() OVER log AS number, sum(bytes) OVER log AS bytes
                           FROM (SELECT seq, octet_length(event) AS bytes FROM events
                                 WHERE session_key = ?1 AND seq > ?2 AND (?3 IS NULL OR run_key = ?3)
                                 ORDER BY seq LIMIT ?4 + 1)
                           WINDOW log AS (ORDER BY seq ROWS UNBOUNDED PRECEDING)))"#,
            range.session,
            range.after,
            range.run,
            range.limit,
            max_bytes
        )
        .fetch_one(&self.readers)
        .await?;
        let end = row.end.zip(row.bytes).zip(row.last);
        Ok(end.map(|((seq, bytes), last)| PageEnd { seq, bytes, more: last > seq }))
    }

    /// Events after a cursor as SSE text of about `max_bytes`, joined inside SQLite: four times as fast as row by row. `None`
    /// when there are none.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn frames(&self, range: Range, max_bytes: usize) -> Result<Option<Frames>, StoreError> {
        let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let Some(end) = self.end_of_page(range, max_bytes).await? else { return Ok(None) };
        if end.bytes > max_bytes {
            let text = LargeText::of_event(self, range.session, end.seq, end.bytes);
            return Ok(Some(Frames::Large { seq: end.seq, text }));
        }
        let row = sqlx::query!(
            r#"SELECT group_concat('id: ' || seq || char(10) || 'data: ' || event || char(10) || char(10), '' ORDER BY seq)
                   AS "text: String", max(seq) AS "last_seq: i64"
               FROM events WHERE session_key = ?1 AND seq > ?2 AND seq <= ?4 AND (?3 IS NULL OR run_key = ?3)"#,
            range.session,
            range.after,
            range.run,
            end.seq
        )
        .fetch_one(&self.readers)
        .await?;
        Ok(row.text.zip(row.last_seq).map(|(text, last_seq)| Frames::Events { text, last_seq }))
    }

    /// A tool chunk as JSON, without its potentially large fields.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn event_outline(&self, session: SessionKey, seq: Seq) -> Result<String, StoreError> {
        let _turn = self.large.turn().await;
        let outline = sqlx::query_scalar!(
            r#"SELECT json_replace(event, '$.input', NULL, '$.output', NULL, '$.errorText', '') AS "outline!: String"
               FROM events WHERE session_key = ?1 AND seq = ?2"#,
            session,
            seq
        );
        Ok(outline.fetch_one(&self.readers).await?)
    }

    /// The newest event of each of these sessions.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn last_seqs(&self, sessions: &[SessionKey]) -> Result<Vec<(SessionKey, Seq)>, StoreError> {
        let sessions = serde_json::to_string(sessions).map_err(|e| StoreError::Invalid(e.to_string()))?;
        let rows =
            sqlx::query!("SELECT key, last_seq FROM sessions WHERE key IN (SELECT value FROM json_each(?1))", sessions)
                .fetch_all(&self.readers)
                .await?;
        Ok(rows.into_iter().map(|row| (row.key, row.last_seq)).collect())
    }
}

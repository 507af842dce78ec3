//! Pages of a conversation, from either end.
//!
//! Always: a page is bounded in messages and in bytes; rows that do not fit are not read.

use super::super::large::{LargeText, PAGE_BYTES};
use super::super::{Store, StoreError, text};
use crate::lease::SessionKey;
use crate::message::{Message, Role};

/// A page of messages, and the cursors of its neighbours.
#[derive(Debug, Default)]
pub struct MessagePage {
    /// The messages whose turn has begun, or was cancelled before it did, oldest first.
    pub messages: Vec<Message>,
    /// Messages whose turn has not begun, the next first: they wait for the answer that is under way.
    pub queued: Vec<Message>,
    /// The cursor of the page of older ones; none when these are the oldest.
    pub prev: Option<MessageCursor>,
    /// The cursor of the page of newer ones; none when these are the newest.
    pub next: Option<MessageCursor>,
    /// The parts of the page's only message, which are null in `messages`, if they are large and were not to be read as a whole.
    pub large: Option<LargeText>,
}

/// A position in a conversation: a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageCursor {
    /// First `seq` of the turn.
    pub position: i64,
    /// Row of the message.
    pub key: i64,
}

impl MessageCursor {
    /// Before the first message.
    pub const START: Self = Self { position: 0, key: 0 };
    /// After the last message.
    pub const END: Self = Self { position: i64::MAX, key: i64::MAX };
}

/// The range of messages to read.
#[derive(Debug, Clone, Copy)]
pub struct MessageRange {
    /// Where the page begins, and in which direction it extends.
    pub from: PageFrom,
    /// Maximum number of messages.
    pub limit: i64,
    /// Whether to include the answer so far of an unfinished run.
    pub partial: bool,
}

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFrom {
    /// The oldest messages after this one.
    After(MessageCursor),
    /// The newest messages before this one.
    Before(MessageCursor),
}

impl PageFrom {
    fn cursor(self) -> MessageCursor {
        match self {
            Self::After(cursor) | Self::Before(cursor) => cursor,
        }
    }
}

/// A message that may go into a page.
struct Size {
    key: i64,
    position: i64,
    /// When it was last written.
    updated_at: i64,
    parts_bytes: i64,
    bytes: i64,
}

impl Size {
    fn cursor(&self) -> MessageCursor {
        MessageCursor { position: self.position, key: self.key }
    }
}

impl Store {
    /// The messages of a session after a cursor, in the order of the conversation. Without `partial`, the answer of an
    /// unfinished run is left out.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn list_messages(
        &self,
        session: SessionKey,
        after: MessageCursor,
        limit: i64,
        partial: bool,
    ) -> Result<MessagePage, StoreError> {
        self.message_page(session, MessageRange { from: PageFrom::After(after), limit, partial }).await
    }

    /// A page of the conversation of a session.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn message_page(&self, session: SessionKey, range: MessageRange) -> Result<MessagePage, StoreError> {
        self.page_of_messages(session, range, true).await
    }

    /// The same, without the parts of a message that fills a page of its own.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn message_page_without_large(
        &self,
        session: SessionKey,
        range: MessageRange,
    ) -> Result<MessagePage, StoreError> {
        self.page_of_messages(session, range, false).await
    }

    async fn page_of_messages(
        &self,
        session: SessionKey,
        range: MessageRange,
        whole: bool,
    ) -> Result<MessagePage, StoreError> {
        // Read first: a message whose turn begins in between is then in both lists, and is removed from the queue below.
        let mut queued = self.queued_messages(session).await?;
        let (mut found, mut more) = self.message_sizes(session, range).await?;
        let sums = found.iter().scan(0, |sum, size| {
            *sum += size.bytes;
            Some(*sum)
        });
        let fitting = sums.take_while(|sum| *sum <= PAGE_BYTES).count().max(1);
        more |= fitting < found.len();
        found.truncate(fitting);
        let (near, far) = (found.first().map(Size::cursor), found.last().map(Size::cursor));
        let (prev, next) = match range.from {
            PageFrom::After(_) => {
                (self.neighbour(session, near.map(PageFrom::Before), range).await?, far.filter(|_| more))
            }
            PageFrom::Before(_) => {
                (far.filter(|_| more), self.neighbour(session, near.map(PageFrom::After), range).await?)
            }
        };
        if matches!(range.from, PageFrom::Before(_)) {
            found.reverse();
        }
        let large = found.first().filter(|first| !whole && first.parts_bytes > PAGE_BYTES);
        let (messages, large) = match large {
            Some(size) => {
                let text = LargeText::of_message(self, size.key, size.updated_at, size.parts_bytes);
                (vec![self.head_of_message(size.key).await?], Some(text))
            }
            None => (self.load_messages(&found).await?, None),
        };
        queued.retain(|waiting| messages.iter().all(|message| message.id != waiting.id));
        Ok(MessagePage { messages, queued, prev, next, large })
    }

    async fn head_of_message(&self, key: i64) -> Result<Message, StoreError> {
        let row = sqlx::query_as!(
            Row,
            r#"SELECT id, role, metadata, 'null' AS "parts!: String" FROM messages WHERE key = ?1"#,
            key
        );
        row.fetch_one(&self.readers).await?.try_into()
    }

    /// The sizes of the messages of a range, starting at its cursor, and whether there are more. The sizes are in the row
    /// headers: no message is loaded for them.
    async fn message_sizes(&self, session: SessionKey, range: MessageRange) -> Result<(Vec<Size>, bool), StoreError> {
        let (cursor, partial, limit) = (range.from.cursor(), range.partial, range.limit);
        // Read first: a message that gets its position in between is then found by the other query, too.
        let cancelled = self.cancelled_messages(session, range).await?;
        let mut sizes = match range.from {
            PageFrom::After(_) => {
                sqlx::query_as!(
                    Size,
                    r#"SELECT m.key AS "key!", m.position AS "position!: i64", m.updated_at,
                           octet_length(m.parts) AS "parts_bytes!: i64", octet_length(m.parts) + coalesce(octet_length(m.metadata), 0) AS "bytes!: i64"
                       FROM messages m LEFT JOIN runs r ON r.key = m.run_key
                       WHERE m.session_key = ?1 AND m.superseded_at IS NULL
                         AND (m.position, m.key) > (?2, ?3)
                         AND (?5 OR r.key IS NULL OR r.settled_at IS NOT NULL)
                       ORDER BY m.position, m.key LIMIT ?4 + 1"#,
                    session,
                    cursor.position,
                    cursor.key,
                    limit,
                    partial
                )
                .fetch_all(&self.readers)
                .await?
            }
            PageFrom::Before(_) => {
                sqlx::query_as!(
                    Size,
                    r#"SELECT m.key AS "key!", m.position AS "position!: i64", m.updated_at,
                           octet_length(m.parts) AS "parts_bytes!: i64", octet_length(m.parts) + coalesce(octet_length(m.metadata), 0) AS "bytes!: i64"
                       FROM messages m LEFT JOIN runs r ON r.key = m.run_key
                       WHERE m.session_key = ?1 AND m.superseded_at IS NULL
                         AND (m.position, m.key) < (?2, ?3)
                         AND (?5 OR r.key IS NULL OR r.settled_at IS NOT NULL)
                       ORDER BY m.position DESC, m.key DESC LIMIT ?4 + 1"#,
                    session,
                    cursor.position,
                    cursor.key,
                    limit,
                    partial
                )
                .fetch_all(&self.readers)
                .await?
            }
        };
        for size in cancelled {
            if sizes.iter().all(|placed| placed.key != size.key) {
                sizes.push(size);
            }
        }
        sizes.sort_by_key(|size| (size.position, size.key));
        if matches!(range.from, PageFrom::Before(_)) {
            sizes.reverse();
        }
        let limit = usize::try_from(limit).unwrap_or_default();
        let more = sizes.len() > limit;
        sizes.truncate(limit);
        Ok((sizes, more))
    }

    /// The messages of a range whose run was cancelled in the queue behind a run that has begun: they have no position until
    /// that run has ended. Until then they are placed before the message that is being answered, which its answer must follow,
    /// or after a partial answer.
    async fn cancelled_messages(&self, session: SessionKey, range: MessageRange) -> Result<Vec<Size>, StoreError> {
        let (cursor, is_forward) = (range.from.cursor(), matches!(range.from, PageFrom::After(_)));
        let rows = sqlx::query_as!(
            Size,
            r#"WITH begun AS (
                   SELECT first_seq, last_seq FROM runs WHERE session_key = ?1 AND status = 'running'
                   UNION ALL
                   SELECT first_seq, last_seq FROM runs
                       WHERE session_key = ?1 AND status = 'queued' AND (first_seq IS NULL) = 0),
               place (position) AS (
                   SELECT coalesce((SELECT iif(?2, last_seq, first_seq - 1) FROM begun LIMIT 1), last_seq + 1)
                   FROM sessions WHERE key = ?1)
               SELECT DISTINCT m.key AS "key!", p.position AS "position!: i64", m.updated_at,
                   octet_length(m.parts) AS "parts_bytes!: i64", octet_length(m.parts) + coalesce(octet_length(m.metadata), 0) AS "bytes!: i64"
               FROM place p CROSS JOIN runs r INDEXED BY runs_unwritten ON r.session_key = ?1
               JOIN messages m ON m.key = r.message_key
               WHERE r.settled_at IS NOT NULL AND r.first_seq IS NULL
                 AND m.position IS NULL AND m.superseded_at IS NULL
                 AND NOT EXISTS (SELECT 1 FROM runs n WHERE n.message_key = m.key AND n.settled_at IS NULL)
                 AND iif(?5, (p.position, m.key) > (?3, ?4), (p.position, m.key) < (?3, ?4))
               ORDER BY iif(?5, m.key, -m.key) LIMIT ?6 + 1"#,
            session,
            range.partial,
            cursor.position,
            cursor.key,
            is_forward,
            range.limit
        );
        Ok(rows.fetch_all(&self.readers).await?)
    }

    /// The cursor of the page on the other side, if there is one.
    async fn neighbour(
        &self,
        session: SessionKey,
        from: Option<PageFrom>,
        range: MessageRange,
    ) -> Result<Option<MessageCursor>, StoreError> {
        // There is none beyond the first or last message.
        if range.from == PageFrom::After(MessageCursor::START) || range.from == PageFrom::Before(MessageCursor::END) {
            return Ok(None);
        }
        let Some(from) = from else { return Ok(None) };
        let (found, _) = self.message_sizes(session, MessageRange { from, limit: 1, ..range }).await?;
        Ok(found.first().map(|_| from.cursor()))
    }

    async fn load_messages(&self, found: &[Size]) -> Result<Vec<Message>, StoreError> {
        let _turn = self.large.turn_for(found.iter().map(|size| size.bytes).sum()).await;
        let keys: Vec<i64> = found.iter().map(|size| size.key).collect();
        let keys = serde_json::to_string(&keys).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT m.id, m.role, m.metadata, m.parts FROM json_each(?1) k JOIN messages m ON m.key = k.value
               ORDER BY k.key"#,
            keys
        );
        rows.fetch_all(&self.readers).await?.into_iter().map(Message::try_from).collect()
    }
}

/// A message as stored.
pub(super) struct Row {
    pub id: String,
    pub role: String,
    pub metadata: Option<String>,
    pub parts: String,
}

impl TryFrom<Row> for Message {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id.parse()?,
            role: match row.role.as_str() {
                "user" => Role::User,
                "system" => Role::System,
                _ => Role::Assistant,
            },
            metadata: row.metadata.map(text::raw).transpose()?,
            parts: text::raw(row.parts)?,
        })
    }
}

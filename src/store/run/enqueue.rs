//! Enqueue: the message, its run and the session's place, in one transaction.

use crate::clock::millis;
use crate::id::{AgentName, MessageId, RunId, SessionId, WorkspaceName};
use crate::lease::{RunKey, SessionKey};
use crate::message::UserMessage;
use crate::run::{RunOptions, WhenBusy};
use crate::store::session::NewSession;
use crate::store::tx::{Notice, Tx};
use crate::store::{Store, StoreError, assignment, message, permission, session};
use crate::workspace::WhenFull;

use super::{RunRow, load_one, request_cancel};

/// Why a message is sent. A message with an unknown id is new, whatever the purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Purpose {
    /// A new message. Sending the same id again is the same send; it is refused if the message differs.
    #[default]
    Send,
    /// The message is stored already, and its answer is to be generated again. If it differs from the stored one, it is an edit.
    Regenerate,
    /// It replaces the message of the same id and all that came after.
    Edit,
}

/// A message to be enqueued.
#[derive(Debug, Clone)]
pub struct Enqueue {
    /// The session; created when it does not exist.
    pub session: SessionId,
    /// What it is created with.
    pub new: NewSession,
    /// Refuse the message if the session exists with another workspace than that of `new`.
    pub workspace_named: bool,
    /// The same for the agent.
    pub agent_named: bool,
    /// The message of the person.
    pub message: UserMessage,
    /// Why it is sent.
    pub purpose: Purpose,
    /// The options of its run.
    pub options: RunOptions,
    /// Who declines, with this message, the open questions of the running run, if that run waits for nothing else. The message
    /// then goes next.
    pub declined_by: Option<String>,
    /// Whether the message goes next in any case.
    pub goes_next: bool,
    /// Maximum number of queued runs of a session.
    pub max_queued: u32,
    /// What the session gets when no slot is free.
    pub when_full: WhenFull,
    /// The agents that are keyed by slot.
    pub slot_bound: Vec<AgentName>,
    /// Whether the session gives up its slot when it has nothing left to do.
    pub close_when_idle: bool,
}

/// The result of an enqueue.
#[derive(Debug, Clone)]
pub struct Enqueued {
    /// Its run.
    pub run: RunRow,
    /// False when its run existed before: nothing was started.
    pub created: bool,
}

/// What to do with a message.
enum Step {
    /// Nothing: its run exists.
    Known(RunKey),
    /// Insert the message and a run.
    Insert,
    /// Enqueue another run for it, with its stored text or, if `edits`, with a new one.
    Answer { edits: bool },
    /// Replace its text: its run is still queued.
    Rewrite { message: i64, run: RunKey },
}

/// Why a message was refused. Nothing was stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The session has a queued or running run, and the caller did not want to wait.
    #[error("the session is busy with run {0}")]
    Busy(RunId),
    /// The session has reached its limit of queued runs.
    #[error("the session has {0} queued runs, and may have no more: wait until some have begun, or cancel some")]
    QueueFull(u32),
    /// The pool has no free slot, and its policy is to refuse.
    #[error("workspace {0} has no free slot: close a session or try later")]
    PoolFull(WorkspaceName),
    /// The session belongs to another workspace or agent.
    #[error("the session exists with {what} {is:?}, not {asked:?}")]
    Differs {
        /// What differs.
        what: &'static str,
        /// What it is.
        is: String,
        /// What was asked for.
        asked: String,
    },
    /// The id belongs to a message of the session that was not sent by a person: an answer.
    #[error("message id {0} is taken by another message of the session")]
    IdTaken(MessageId),
    /// The id was sent before with other content.
    #[error("message {0} was sent before with other parts: give a new message an id of its own")]
    MessageDiffers(MessageId),
}

impl Store {
    /// Enqueues a message; returns after the commit.
    ///
    /// # Errors
    /// Outside: why nothing was stored. Inside: why it was refused.
    pub async fn enqueue(&self, enqueue: Enqueue) -> Result<Result<Enqueued, Refusal>, StoreError> {
        self.write(move |tx| {
            let enqueue = enqueue.clone();
            Box::pin(async move { enqueue.run(tx).await })
        })
        .await
    }
}

impl Enqueue {
    async fn run(self, tx: &mut Tx<'_>) -> Result<Result<Enqueued, Refusal>, StoreError> {
        let known = session::find(tx.conn, &self.session).await?;
        let step = match &known {
            Some(known) => match self.check_same(known) {
                Ok(()) => self.find_step(tx, known.key).await?,
                Err(refusal) => Err(refusal),
            },
            None => Ok(Step::Insert),
        };
        let step = match step {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(Step::Known(run)) => return enqueued(tx, run, false).await.map(Ok),
            Ok(step) => step,
        };
        // Checked before anything is written: a refusal stores nothing.
        if let Some(refusal) = self.find_refusal(tx, known.as_ref(), &step).await? {
            return Ok(Err(refusal));
        }
        let mut session = match known {
            Some(known) => known,
            None => session::create(tx, &self.session, &self.new).await?,
        };
        let slot_bound = self.slot_bound.iter().any(|agent| agent.as_str() == session.agent);
        if slot_bound != session.slot_bound {
            session::set_slot_bound(tx, session.key, slot_bound).await?;
            session.slot_bound = slot_bound;
        }
        let declined = match &self.declined_by {
            Some(by) => permission::decline(tx, session.key, by).await?,
            None => false,
        };
        let goes_next = declined || self.goes_next || self.options.when_busy == WhenBusy::Interrupt;
        let message_key = match step {
            Step::Rewrite { message, run } if !goes_next => {
                message::rewrite(tx, message, &self.message).await?;
                return enqueued(tx, run, false).await.map(Ok);
            }
            Step::Insert => message::insert_user(tx, session.key, &self.message).await?,
            Step::Answer { edits: false } | Step::Known(_) => {
                message::supersede_answers(tx, session.key, &self.message.id, None).await?
            }
            Step::Answer { edits: true } | Step::Rewrite { .. } => {
                message::supersede_answers(tx, session.key, &self.message.id, Some(&self.message)).await?
            }
        };
        if self.options.when_busy == WhenBusy::Interrupt {
            cancel_running(tx, session.key).await?;
        }
        if let Some(title) = self.message.title() {
            session::set_missing_title(tx, session.key, &title).await?;
        }
        if !session.has_place {
            assignment::allocate(tx, &session, self.when_full).await?;
        }
        let front = if goes_next { next_front(tx, session.key).await? } else { 0 };
        let run = insert(tx, &session, message_key, &self.options, front).await?;
        if !matches!(step, Step::Insert) {
            cancel_replaced(tx, session.key, message_key, run).await?;
        }
        if self.close_when_idle {
            session::close_when_idle(tx, session.key).await?;
        }
        tx.notices.push(Notice::Ready);
        enqueued(tx, run, true).await.map(Ok)
    }

    fn check_same(&self, known: &session::Known) -> Result<(), Refusal> {
        let differs =
            |what, is: &str, asked: &str| Err(Refusal::Differs { what, is: is.to_owned(), asked: asked.to_owned() });
        if self.workspace_named && known.workspace != self.new.workspace.as_str() {
            return differs("workspace", &known.workspace, self.new.workspace.as_str());
        }
        if self.agent_named && known.agent != self.new.agent.as_str() {
            return differs("agent", &known.agent, self.new.agent.as_str());
        }
        Ok(())
    }

    /// What to do with the message in a session that exists. A message that is sent again has its run already.
    async fn find_step(&self, tx: &mut Tx<'_>, session: SessionKey) -> Result<Result<Step, Refusal>, StoreError> {
        let Some(sent) = message::find_sent(tx.conn, session, &self.message.id).await? else {
            return Ok(Ok(Step::Insert));
        };
        let Some(latest) = sent.latest_run else { return Ok(Err(Refusal::IdTaken(self.message.id.clone()))) };
        let is_same = self.message.has_content_of(&sent.parts);
        Ok(match self.purpose {
            Purpose::Send if !is_same => Err(Refusal::MessageDiffers(self.message.id.clone())),
            Purpose::Send => Ok(Step::Known(latest.key)),
            // Two clicks on "regenerate" count once; a click after the run has settled is a new request.
            Purpose::Regenerate if is_same && latest.is_settled => Ok(Step::Answer { edits: false }),
            Purpose::Regenerate | Purpose::Edit if is_same => Ok(Step::Known(latest.key)),
            _ if latest.takes_edits => Ok(Step::Rewrite { message: sent.key, run: latest.key }),
            Purpose::Regenerate | Purpose::Edit => Ok(Step::Answer { edits: true }),
        })
    }

    async fn find_refusal(
        &self,
        tx: &mut Tx<'_>,
        known: Option<&session::Known>,
        step: &Step,
    ) -> Result<Option<Refusal>, StoreError> {
        if let Some(known) = known
            && self.options.when_busy == WhenBusy::Reject
            && let Some(run) = busy_with(tx, known.key).await?
        {
            return Ok(Some(Refusal::Busy(run)));
        }
        // Rewriting a queued message does not lengthen the queue.
        if let Some(known) = known
            && !matches!(step, Step::Rewrite { .. })
            && is_full(tx, known.key, self.max_queued).await?
        {
            return Ok(Some(Refusal::QueueFull(self.max_queued)));
        }
        if self.when_full == WhenFull::Reject && known.is_none_or(|known| !known.has_place) {
            let (key, workspace) = match known {
                Some(known) => (known.key, known.workspace.parse()?),
                None => (0, self.new.workspace.clone()),
            };
            if assignment::free_slot(tx.conn, key, workspace.as_str()).await?.is_none() {
                return Ok(Some(Refusal::PoolFull(workspace)));
            }
        }
        Ok(None)
    }
}

async fn enqueued(tx: &mut Tx<'_>, run: RunKey, created: bool) -> Result<Enqueued, StoreError> {
    let run = load_one(&mut *tx.conn, run).await?;
    let run = run.ok_or_else(|| StoreError::Invalid("no row for a run that was just enqueued".into()))?;
    Ok(Enqueued { run, created })
}

async fn busy_with(tx: &mut Tx<'_>, session: SessionKey) -> Result<Option<RunId>, StoreError> {
    let id = sqlx::query_scalar!(
        "SELECT id FROM runs WHERE session_key = ?1 AND status = 'running' UNION ALL
         SELECT id FROM runs INDEXED BY runs_queued WHERE session_key = ?1 AND status = 'queued' LIMIT 1",
        session
    )
    .fetch_optional(&mut *tx.conn)
    .await?;
    Ok(id.map(|id| id.parse()).transpose()?)
}

/// Whether at least `most` runs are queued in a session, not counting those marked to be cancelled. Reads no more of the queue
/// than that.
async fn is_full(tx: &mut Tx<'_>, session: SessionKey, most: u32) -> Result<bool, StoreError> {
    let last = i64::from(most) - 1;
    let full = sqlx::query_scalar!(
        "SELECT key FROM runs INDEXED BY runs_queued WHERE session_key = ?1 AND status = 'queued'
             AND key > (SELECT coalesce(cancel_through, 0) FROM sessions WHERE key = ?1) LIMIT 1 OFFSET ?2 + 0",
        session,
        last
    );
    Ok(full.fetch_optional(&mut *tx.conn).await?.is_some())
}

/// Asks the running run to stop.
async fn cancel_running(tx: &mut Tx<'_>, session: SessionKey) -> Result<(), StoreError> {
    let running =
        sqlx::query_scalar!(r#"SELECT key AS "key!" FROM runs WHERE session_key = ?1 AND status = 'running'"#, session);
    match running.fetch_optional(&mut *tx.conn).await? {
        Some(run) => request_cancel(tx, run).await,
        None => Ok(()),
    }
}

/// The `front` value that puts a new run ahead of all queued runs of its session.
async fn next_front(tx: &mut Tx<'_>, session: SessionKey) -> Result<i64, StoreError> {
    let front = sqlx::query_scalar!(
        r#"SELECT coalesce(max(front), 0) + 1 AS "front!: i64" FROM runs WHERE session_key = ?1 AND status = 'queued'"#,
        session
    );
    Ok(front.fetch_one(&mut *tx.conn).await?)
}

/// Cancels the queued runs whose message is replaced: their answers would never be shown. Runs after the new run is enqueued, so
/// that the session keeps its assignment, or its place in the queue for a slot.
async fn cancel_replaced(
    tx: &mut Tx<'_>,
    session: SessionKey,
    message: i64,
    replacement: RunKey,
) -> Result<(), StoreError> {
    let replaced = sqlx::query_scalar!(
        r#"SELECT r.key AS "key!" FROM runs r INDEXED BY runs_queued JOIN messages m ON m.key = r.message_key
           WHERE r.session_key = ?1 AND r.status = 'queued' AND r.key <> ?3
             AND (m.key = ?2 OR m.superseded_at IS NOT NULL) ORDER BY r.key"#,
        session,
        message,
        replacement
    );
    for run in replaced.fetch_all(&mut *tx.conn).await? {
        request_cancel(tx, run).await?;
    }
    Ok(())
}

async fn insert(
    tx: &mut Tx<'_>,
    session: &session::Known,
    message: i64,
    options: &RunOptions,
    front: i64,
) -> Result<RunKey, StoreError> {
    let id = RunId::generate();
    let response = MessageId::of_response(id);
    let (id, response) = (id.to_string(), response.as_str());
    let timeout = options.timeout.map(millis);
    let now = tx.now.as_millis();
    let (workspace, agent): (&str, &str) = (&session.workspace, &session.agent);
    let inserted = sqlx::query!(
        "INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, status, priority, front, timeout_ms, queued_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'queued', ?7, ?8, ?9, ?10)",
        id,
        session.key,
        message,
        response,
        workspace,
        agent,
        options.priority,
        front,
        timeout,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(inserted.last_insert_rowid())
}

//! Enqueue: the message, its run and the session's place, in one transaction.

use crate::clock::millis;
use crate::id::{AgentName, MessageId, RunId, SessionId, WorkspaceName};
use crate::lease::{RunKey, SessionKey};
use crate::message::UserMessage;
use crate::run::{RunOptions, WhenBusy};
use crate::store::session::NewSession;
use crate::store::writer::{Notice, Tx};
use crate::store::{Store, StoreError, assignment, message, session};
use crate::workspace::WhenFull;

use super::{Located, load_one, request_cancel};

/// Why a message is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Purpose {
    /// It is new. The same id again is the same send.
    #[default]
    Send,
    /// It is there, and its answer is to be given anew.
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
    /// Refuse when the session exists with another workspace or agent than `new` names.
    pub workspace_named: bool,
    /// The same for the agent.
    pub agent_named: bool,
    /// What the person said.
    pub message: UserMessage,
    /// Why it is sent.
    pub purpose: Purpose,
    /// How it is to be run.
    pub options: RunOptions,
    /// What the session gets when no slot is free.
    pub when_full: WhenFull,
    /// The agents that are keyed by slot.
    pub slot_bound: Vec<AgentName>,
    /// The session gives up its slot when it has nothing left to do.
    pub close_when_idle: bool,
}

/// What became of a message.
#[derive(Debug, Clone)]
pub struct Enqueued {
    /// Its run.
    pub run: Located,
    /// False when the same message had been sent before: nothing was started.
    pub created: bool,
}

/// Why a message was not taken. Nothing was stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The session has a queued or running run, and the caller did not want to wait.
    #[error("the session is busy with run {0}")]
    Busy(RunId),
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
    /// The id is taken by a message that nobody sent.
    #[error("message id {0} is taken by another message of the session")]
    IdTaken(MessageId),
    /// There is no such message to regenerate or edit.
    #[error("the session has no message {0}")]
    NoSuchMessage(MessageId),
}

impl Store {
    /// Enqueues a message; answers after the commit.
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
        if let Some(known) = &known {
            if let Err(refusal) = self.check_same(known) {
                return Ok(Err(refusal));
            }
            if let Some(answer) = self.find_duplicate(tx, known.key).await? {
                return Ok(answer);
            }
        } else if self.purpose != Purpose::Send {
            return Ok(Err(Refusal::NoSuchMessage(self.message.id)));
        }
        let mut options = self.options.clone();
        if let Some(known) = &known {
            match options.when_busy {
                WhenBusy::Enqueue => {}
                WhenBusy::Reject => {
                    if let Some(run) = busy_with(tx, known.key).await? {
                        return Ok(Err(Refusal::Busy(run)));
                    }
                }
                WhenBusy::Interrupt => options.priority = interrupt(tx, known.key, options.priority).await?,
            }
            if !known.has_place && self.when_full == WhenFull::Reject {
                // Asked before anything is written: a refusal stores nothing.
                if assignment::free_slot(tx.conn, known.key, &known.workspace).await?.is_none() {
                    return Ok(Err(Refusal::PoolFull(known.workspace.parse()?)));
                }
            }
        } else if self.when_full == WhenFull::Reject
            && assignment::free_slot(tx.conn, 0, self.new.workspace.as_str()).await?.is_none()
        {
            return Ok(Err(Refusal::PoolFull(self.new.workspace)));
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
        let message_key = match self.purpose {
            Purpose::Send => message::insert_user(tx, session.key, &self.message).await?,
            Purpose::Regenerate => message::supersede_answers(tx, session.key, &self.message.id, None).await?,
            Purpose::Edit => message::supersede_answers(tx, session.key, &self.message.id, Some(&self.message)).await?,
        };
        session::set_missing_title(tx, session.key, &self.message.title()).await?;
        if !session.has_place {
            assignment::allocate(tx, &session, self.when_full).await?;
        }
        let run = insert(tx, &session, message_key, &options).await?;
        if self.purpose != Purpose::Send {
            cancel_replaced(tx, session.key, message_key, run).await?;
        }
        if self.close_when_idle {
            session::close_when_idle(tx, session.key).await?;
        }
        tx.notices.push(Notice::Ready);
        let run = load_one(&mut *tx.conn, run).await?;
        let run = run.ok_or_else(|| StoreError::Invalid("no row for a run that was just enqueued".into()))?;
        Ok(Ok(Enqueued { run, created: true }))
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

    /// The same message again answers with the run that it has; nothing is started.
    async fn find_duplicate(
        &self,
        tx: &mut Tx<'_>,
        session: SessionKey,
    ) -> Result<Option<Result<Enqueued, Refusal>>, StoreError> {
        let Some(sent) = message::find_sent(tx.conn, session, &self.message.id).await? else {
            return Ok(match self.purpose {
                Purpose::Send => None,
                _ => Some(Err(Refusal::NoSuchMessage(self.message.id.clone()))),
            });
        };
        let Some((latest, settled)) = sent.latest_run else {
            return Ok(Some(Err(Refusal::IdTaken(self.message.id.clone()))));
        };
        let again = match self.purpose {
            Purpose::Send => true,
            // Two clicks on "regenerate" are one; after its end a further one is a new wish.
            Purpose::Regenerate => !settled,
            Purpose::Edit => sent.parts == self.message.parts_json(),
        };
        if !again {
            return Ok(None);
        }
        let run = load_one(&mut *tx.conn, latest).await?;
        Ok(run.map(|run| Ok(Enqueued { run, created: false })))
    }
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

/// Asks the running run to stop; answers with the priority that puts the new one in front of the queue.
async fn interrupt(tx: &mut Tx<'_>, session: SessionKey, priority: i64) -> Result<i64, StoreError> {
    let running =
        sqlx::query_scalar!(r#"SELECT key AS "key!" FROM runs WHERE session_key = ?1 AND status = 'running'"#, session);
    if let Some(run) = running.fetch_optional(&mut *tx.conn).await? {
        request_cancel(tx, run).await?;
    }
    let highest = sqlx::query_scalar!(
        r#"SELECT max(priority) AS "highest: i64" FROM runs WHERE session_key = ?1 AND status = 'queued'"#,
        session
    )
    .fetch_one(&mut *tx.conn)
    .await?;
    Ok(highest.map_or(priority, |highest| priority.max((highest + 1).min(1000))))
}

/// Cancels the queued runs whose message is replaced: nobody would see what they answer. Comes after the new run is in the
/// queue, so that the session keeps its place, or its place in the line for one.
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
) -> Result<RunKey, StoreError> {
    let id = RunId::generate();
    let response = MessageId::of_response(id);
    let (id, response) = (id.to_string(), response.as_str());
    let timeout = options.timeout.map(millis);
    let now = tx.now.as_millis();
    let (workspace, agent): (&str, &str) = (&session.workspace, &session.agent);
    let inserted = sqlx::query!(
        "INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, status, priority, timeout_ms, queued_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'queued', ?7, ?8, ?9)",
        id,
        session.key,
        message,
        response,
        workspace,
        agent,
        options.priority,
        timeout,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(inserted.last_insert_rowid())
}

//! The writer: one task owns the one write connection of this process.
//!
//! It takes all waiting writes, executes them in one `BEGIN IMMEDIATE` (all appends and all settles as one statement of each
//! kind), commits once, publishes what was committed within the process, and then answers each caller. So durability costs one
//! sync per batch, and a cancelled caller cannot abort a write. If a batch fails for a reason that one of its commands may have
//! caused, they are retried one by one, so that one bad command does not fail its neighbours.
//!
//! Proof: `tests/it/store/writer.rs`, `a_cancelled_caller_does_not_cancel_the_write`, `one_bad_write_does_not_fail_its_neighbours` and
//! `write_without_memory_does_not_fail_its_neighbours`.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use sqlx::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::StoreError;
use super::event::{Append, Appended};
use super::file_identity::OpenFile;
use super::run::{Settle, Settled};
use super::tx::{Notice, Tx};
use super::wal::{self, Wal};
use crate::clock::{Clock, Timestamp};
use crate::lease::{LeaseLost, RunKey};
use crate::metrics::METRICS;

/// Capacity of the queue; beyond it, callers wait to submit.
const QUEUE: usize = 1024;
/// Maximum number of commands in one transaction.
const BATCH_COMMANDS: usize = 512;
/// A transaction takes no further commands once it holds this much text of events and messages: larger ones only increase
/// latency for all callers.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Called after each commit, in the order of the commits.
pub type OnCommit = Box<dyn Fn(Vec<Notice>) + Send>;

/// A write of any kind. It may be run more than once, but is committed at most once.
pub(super) trait Job: Send {
    fn run<'a>(&'a mut self, tx: &'a mut Tx<'_>) -> BoxFuture<'a, Result<(), StoreError>>;
    fn committed(self: Box<Self>);
    fn failed(self: Box<Self>, error: StoreError);
}

struct Write<F, T> {
    run: F,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Job for Write<F, T>
where
    F: for<'a> FnMut(&'a mut Tx<'_>) -> BoxFuture<'a, Result<T, StoreError>> + Send,
    T: Send,
{
    fn run<'a>(&'a mut self, tx: &'a mut Tx<'_>) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async {
            self.result = Some((self.run)(tx).await?);
            Ok(())
        })
    }

    // The caller may have been cancelled in the meantime; then the answer is dropped.
    fn committed(self: Box<Self>) {
        let _ = self.reply.send(self.result.ok_or(StoreError::Closed));
    }

    fn failed(self: Box<Self>, error: StoreError) {
        let _ = self.reply.send(Err(error));
    }
}

type Reply<T> = oneshot::Sender<Result<Result<T, LeaseLost>, StoreError>>;

pub(super) enum Command {
    Append(Append, Reply<Appended>),
    Settle(Box<Settle>, Reply<Settled>),
    Write(Box<dyn Job>),
}

impl Command {
    fn leased_run(&self) -> Option<RunKey> {
        match self {
            Self::Append(append, _) => Some(append.lease.run),
            Self::Settle(settle, _) => Some(settle.lease.run),
            Self::Write(_) => None,
        }
    }

    fn bytes(&self) -> usize {
        let bytes = |parts: &Option<Arc<str>>| parts.as_ref().map_or(0, |parts| parts.len());
        match self {
            Self::Append(append, _) => append.events.iter().map(String::len).sum::<usize>() + bytes(&append.parts),
            Self::Settle(settle, _) => bytes(&settle.parts),
            Self::Write(_) => 0,
        }
    }

    fn fail(self, error: StoreError) {
        match self {
            Self::Append(_, reply) => drop(reply.send(Err(error))),
            Self::Settle(_, reply) => drop(reply.send(Err(error))),
            Self::Write(job) => job.failed(error),
        }
    }
}

/// A handle to the writer.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
    task: Arc<tokio::sync::Mutex<Option<JoinHandle<()>>>>,
    closed: tokio_util::sync::CancellationToken,
}

impl Handle {
    async fn ask<T>(&self, command: Command, reply: oneshot::Receiver<Result<T, StoreError>>) -> Result<T, StoreError> {
        self.commands.send(command).await.map_err(|_| StoreError::Closed)?;
        reply.await.map_err(|_| StoreError::Closed)?
    }

    /// Number of commands in the queue.
    pub(super) fn waiting(&self) -> usize {
        self.commands.max_capacity() - self.commands.capacity()
    }

    /// Refuses further writes and waits until the queued ones are done.
    pub(super) async fn close(&self) {
        self.closed.cancel();
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the writer ended abnormally");
        }
    }
}

impl super::Store {
    /// Executes `write` in a transaction and returns after the commit. It may be executed again if a neighbour in the same
    /// transaction failed; only one execution is committed.
    ///
    /// # Errors
    /// What `write` returned, or why the commit failed; nothing is stored then.
    pub async fn write<T, F>(&self, write: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'a> FnMut(&'a mut Tx<'_>) -> BoxFuture<'a, Result<T, StoreError>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.writer()?.ask(Command::Write(Box::new(Write { run: write, result: None, reply })), answer).await
    }

    /// Appends an agent's events to its run; returns after the commit.
    ///
    /// # Errors
    /// Outside: why nothing was stored. Inside: the lease is lost.
    pub async fn append(&self, append: Append) -> Result<Result<Appended, LeaseLost>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writer()?.ask(Command::Append(append, reply), answer).await
    }

    /// Settles a run: last events, status and folded message in one transaction; returns after the commit.
    ///
    /// # Errors
    /// Outside: why nothing was stored. Inside: the lease is lost.
    pub async fn settle(&self, settle: Settle) -> Result<Result<Settled, LeaseLost>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writer()?.ask(Command::Settle(Box::new(settle), reply), answer).await
    }
}

pub(super) fn spawn(file: OpenFile, wal: Wal, clock: Arc<dyn Clock>, on_commit: OnCommit) -> Handle {
    let (commands, queue) = mpsc::channel(QUEUE);
    let closed = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(Writer { file, wal, clock, on_commit }.run(queue, closed.clone()));
    Handle { commands, task: Arc::new(tokio::sync::Mutex::new(Some(task))), closed }
}

struct Writer {
    file: OpenFile,
    wal: Wal,
    clock: Arc<dyn Clock>,
    on_commit: OnCommit,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>, closed: tokio_util::sync::CancellationToken) {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                let next = tokio::select! {
                    biased;
                    next = queue.recv() => next,
                    () = closed.cancelled(), if !queue.is_closed() => {
                        queue.close();
                        continue;
                    }
                    () = tokio::time::sleep(wal::REST), if self.wal.may_be_long => {
                        if self.file.place.check().is_ok() {
                            self.wal.cut(&mut self.file.conn).await;
                        }
                        continue;
                    }
                };
                match next {
                    Some(command) => waiting.push_back(command),
                    None => break,
                }
            }
            // The callers just answered are about to submit their next writes: yielding to them lets one sync serve many.
            let mut taken = 0;
            while taken < waiting.len() && waiting.len() < BATCH_COMMANDS {
                taken = waiting.len();
                tokio::task::yield_now().await;
                while waiting.len() < BATCH_COMMANDS
                    && let Ok(command) = queue.try_recv()
                {
                    waiting.push_back(command);
                }
            }
            let batch = take_batch(&mut waiting);
            self.commit(batch).await;
            self.wal.may_be_long = true;
        }
        if let Err(error) = self.file.conn.close().await {
            tracing::error!(%error, "failed to close the database");
        }
    }

    async fn commit(&mut self, batch: Vec<Command>) {
        let mut batch = Batch::from(batch);
        match batch.attempt(&mut self.file, self.clock.now()).await {
            Ok(notices) => {
                (self.on_commit)(notices);
                batch.answer();
            }
            Err(error) if batch.len() > 1 && error.may_be_of_one_write() => {
                METRICS.batches_split.inc();
                tracing::warn!(%error, commands = batch.len(), "a batch of writes failed; trying them one by one");
                for command in batch.into_commands() {
                    let mut alone = Batch::from(vec![command]);
                    match alone.attempt(&mut self.file, self.clock.now()).await {
                        Ok(notices) => {
                            (self.on_commit)(notices);
                            alone.answer();
                        }
                        Err(error) => alone.fail(error),
                    }
                }
            }
            Err(error) => batch.fail(error),
        }
    }
}

/// The longest prefix that fits one transaction and names each run at most once.
fn take_batch(waiting: &mut VecDeque<Command>) -> Vec<Command> {
    let mut runs = HashSet::new();
    let mut bytes = 0;
    let mut batch = Vec::with_capacity(waiting.len());
    while let Some(next) = waiting.front() {
        if next.leased_run().is_some_and(|run| !runs.insert(run)) || (bytes > 0 && bytes + next.bytes() > BATCH_BYTES) {
            break;
        }
        bytes += next.bytes();
        batch.extend(waiting.pop_front());
    }
    batch
}

/// The commands of one transaction, by kind, and their results.
#[derive(Default)]
struct Batch {
    appends: Vec<Append>,
    append_replies: Vec<Reply<Appended>>,
    appended: Vec<Result<Appended, LeaseLost>>,
    settles: Vec<Settle>,
    settle_replies: Vec<Reply<Settled>>,
    settled: Vec<Result<Settled, LeaseLost>>,
    jobs: Vec<Box<dyn Job>>,
}

impl From<Vec<Command>> for Batch {
    fn from(commands: Vec<Command>) -> Self {
        let mut batch = Self::default();
        for command in commands {
            match command {
                Command::Append(append, reply) => {
                    batch.appends.push(append);
                    batch.append_replies.push(reply);
                }
                Command::Settle(settle, reply) => {
                    batch.settles.push(*settle);
                    batch.settle_replies.push(reply);
                }
                Command::Write(job) => batch.jobs.push(job),
            }
        }
        batch
    }
}

impl Batch {
    fn len(&self) -> usize {
        self.appends.len() + self.settles.len() + self.jobs.len()
    }

    /// BEGIN, COMMIT and ROLLBACK are explicit statements: after a failure SQLite may have ended the transaction itself (on a
    /// full disk it does), and sqlx's count of open transactions would then be off for good, so that no further one could begin.
    ///
    /// A commit whose sync failed is rolled back: no reader has seen its frames, and the next commit overwrites them, so that
    /// its own sync covers everything that it acknowledges, whatever the system did with the pages that it could not write. So
    /// the same connection stays in use. Proof: `tests/faults/power.rs`.
    async fn attempt(&mut self, file: &mut OpenFile, now: Timestamp) -> Result<Vec<Notice>, StoreError> {
        let began = Instant::now();
        // A replaced file may share its WAL with the new one: no transaction is begun in it any more.
        file.place.check()?;
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut file.conn).await?;
        match self.run(file, now).await {
            Ok(notices) => {
                METRICS.commit_seconds.observe(began.elapsed().as_secs_f64());
                Ok(notices)
            }
            Err(error) => {
                // There may be nothing left to roll back; the first error is the one to report.
                let _ = sqlx::raw_sql("ROLLBACK").execute(&mut file.conn).await;
                Err(error)
            }
        }
    }

    async fn run(&mut self, file: &mut OpenFile, now: Timestamp) -> Result<Vec<Notice>, StoreError> {
        let mut tx = Tx { conn: &mut file.conn, now, notices: Vec::new() };
        // Settles are executed before the jobs, so that a claim in the same batch finds their sessions free.
        self.appended = super::event::append_all(&mut tx, &self.appends).await?;
        self.settled = super::run::settle_all(&mut tx, &self.settles).await?;
        for job in &mut self.jobs {
            job.run(&mut tx).await?;
        }
        let notices = tx.notices;
        file.place.check()?;
        sqlx::raw_sql("COMMIT").execute(&mut file.conn).await?;
        Ok(notices)
    }

    fn answer(self) {
        // The answer to a cancelled caller is dropped.
        for (reply, result) in self.append_replies.into_iter().zip(self.appended) {
            let _ = reply.send(Ok(result));
        }
        for (reply, result) in self.settle_replies.into_iter().zip(self.settled) {
            let _ = reply.send(Ok(result));
        }
        for job in self.jobs {
            job.committed();
        }
    }

    fn into_commands(self) -> impl Iterator<Item = Command> {
        let appends = self.appends.into_iter().zip(self.append_replies).map(|(a, r)| Command::Append(a, r));
        let settles = self.settles.into_iter().zip(self.settle_replies).map(|(s, r)| Command::Settle(Box::new(s), r));
        appends.chain(settles).chain(self.jobs.into_iter().map(Command::Write))
    }

    fn fail(self, error: StoreError) {
        let mut commands = self.into_commands().peekable();
        while let Some(command) = commands.next() {
            if commands.peek().is_none() {
                return command.fail(error);
            }
            command.fail(error.again());
        }
    }
}

//! The reference: what a good engineer writes by hand for the same guarantees. One thread, prepared statements, one or two
//! statements per command; it takes all waiting commands, commits once, and then answers.
//!
//! It has no feed, and no retry if one command of a batch fails: it is a yardstick, not a product.

use std::path::Path;
use std::sync::mpsc;
use std::thread;

use mainstay::clock::{Clock, SystemClock};
use mainstay::lease::{Lease, LeaseLost, RunKey, WorkerKey};
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use crate::scene;

/// Most commands in one transaction; the store's own limit.
const BATCH: usize = 512;

/// A claimed run.
pub struct Claimed {
    /// The right to write to it.
    pub lease: Lease,
    /// The run's id, the message that it answers, and what else a worker needs to begin.
    #[expect(dead_code, reason = "read because a worker would need it")]
    pub texts: [Option<String>; 7],
}

type Reply<T> = oneshot::Sender<T>;

enum Command {
    Append(Lease, Vec<String>, Reply<Result<i64, LeaseLost>>),
    Claim(WorkerKey, Reply<Option<Claimed>>),
    Settle(Lease, Vec<String>, String, Reply<Result<i64, LeaseLost>>),
}

/// The queue of the writer's thread, which ends when the last clone is dropped.
#[derive(Clone)]
pub struct Writer(mpsc::SyncSender<Command>);

impl Writer {
    /// Opens the file. `on_commit` gets the events of each append after their commit.
    pub fn open(path: &Path, on_commit: impl Fn(RunKey, Vec<String>) + Send + 'static) -> Self {
        let (commands, queue) = mpsc::sync_channel(1024);
        let conn = scene::connect(path);
        thread::spawn(move || run(&conn, &queue, &on_commit));
        Self(commands)
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).unwrap();
        answer.await.unwrap()
    }

    /// Appends under a lease.
    pub async fn append(&self, lease: Lease, events: Vec<String>) -> Result<i64, LeaseLost> {
        self.ask(|reply| Command::Append(lease, events, reply)).await
    }

    /// Claims one run.
    pub async fn claim(&self, worker: WorkerKey) -> Option<Claimed> {
        self.ask(|reply| Command::Claim(worker, reply)).await
    }

    /// Settles a run as completed.
    pub async fn settle(&self, lease: Lease, events: Vec<String>, parts: String) -> Result<i64, LeaseLost> {
        self.ask(|reply| Command::Settle(lease, events, parts, reply)).await
    }
}

fn run(conn: &Connection, queue: &mpsc::Receiver<Command>, on_commit: &dyn Fn(RunKey, Vec<String>)) {
    while let Ok(first) = queue.recv() {
        let now = SystemClock.now().as_millis();
        let mut answers: Vec<Box<dyn FnOnce()>> = Vec::new();
        let mut told = Vec::new();
        conn.prepare_cached("BEGIN IMMEDIATE").unwrap().execute([]).unwrap();
        for command in std::iter::once(first).chain(queue.try_iter().take(BATCH - 1)) {
            // `send` fails only if the caller has gone away and does not need the answer.
            match command {
                Command::Append(lease, events, reply) => {
                    let result = append(conn, now, lease, &events).unwrap();
                    answers.push(Box::new(move || _ = reply.send(result)));
                    told.push((lease.run, events));
                }
                Command::Claim(worker, reply) => {
                    let result = claim(conn, now, worker).unwrap();
                    answers.push(Box::new(move || _ = reply.send(result)));
                }
                Command::Settle(lease, events, parts, reply) => {
                    let result = settle(conn, now, lease, &events, &parts).unwrap();
                    answers.push(Box::new(move || _ = reply.send(result)));
                }
            }
        }
        conn.prepare_cached("COMMIT").unwrap().execute([]).unwrap();
        told.into_iter().for_each(|(run, events)| on_commit(run, events));
        answers.into_iter().for_each(|answer| answer());
    }
}

/// Inserts the events of a run if its lease is valid: one check of the lease, then plain inserts.
fn insert(conn: &Connection, now: i64, lease: Lease, events: &[String]) -> rusqlite::Result<bool> {
    let head = conn
        .prepare_cached(
            "SELECT session_key, last_seq FROM runs WHERE key = ?1 AND lease_token = ?2 AND status = 'running'
               AND cancel_requested_at IS NULL",
        )?
        .query_row(params![lease.run, lease.token], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    let Some((session, last_seq)) = head else { return Ok(false) };
    let mut insert =
        conn.prepare_cached("INSERT INTO events (session_key, seq, run_key, at, event) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (seq, event) in (last_seq + 1..).zip(events) {
        insert.execute(params![session, seq, lease.run, now, event])?;
    }
    Ok(true)
}

fn append(conn: &Connection, now: i64, lease: Lease, events: &[String]) -> rusqlite::Result<Result<i64, LeaseLost>> {
    if !insert(conn, now, lease, events)? {
        return Ok(Err(LeaseLost));
    }
    let mut grow = conn.prepare_cached(
        "UPDATE runs SET last_seq = last_seq + ?2, source_offset = ?3, said = max(said, ?4) WHERE key = ?1 RETURNING last_seq",
    )?;
    grow.query_row(params![lease.run, events.len() as i64, 10, 1], |row| row.get(0)).map(Ok)
}

fn claim(conn: &Connection, now: i64, worker: WorkerKey) -> rusqlite::Result<Option<Claimed>> {
    let expires_at = now + scene::LEASE.as_millis() as i64;
    let mut claim = conn.prepare_cached(
        "UPDATE runs SET status = 'running', ready = 0, slot_key = c.slot_key, claimed_at = ?1, lease_worker = ?2,
             attempts = attempts + 1, lease_token = lease_token + 1, lease_expires_at = ?3, first_seq = coalesce(first_seq, c.next_seq),
             last_seq = coalesce(last_seq, c.next_seq)
         FROM (SELECT r.key, a.slot_key, s.last_seq + 1 AS next_seq
               FROM runs r JOIN sessions s ON s.key = r.session_key
               JOIN assignments a ON a.session_key = r.session_key AND a.state IN ('active', 'idle')
               WHERE r.ready = 1 AND (r.not_before IS NULL OR r.not_before <= ?1) AND r.agent = ?4
                 AND (SELECT count(*) FROM runs WHERE status = 'running' AND agent = ?4) < ?5
                 AND NOT EXISTS (SELECT 1 FROM runs x WHERE x.status = 'running' AND x.slot_key = a.slot_key)
                 AND NOT (a.slot_key IS NULL AND EXISTS (SELECT 1 FROM runs x WHERE x.status = 'running'
                          AND x.slot_key IS NULL AND x.workspace = r.workspace))
               ORDER BY r.priority DESC, r.key LIMIT 1) c
         WHERE runs.key = c.key
         RETURNING key, lease_token, id, response_id, workspace, agent,
             (SELECT id FROM slots WHERE slots.key = slot_key),
             (SELECT parts FROM messages WHERE messages.key = message_key),
             (SELECT id FROM sessions WHERE sessions.key = session_key)",
    )?;
    let mut rows = claim.query(params![now, worker, expires_at, "demo", 100_000])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let lease = Lease { run: row.get(0)?, token: row.get(1)? };
    let mut texts = [const { None }; 7];
    for (index, text) in texts.iter_mut().enumerate() {
        *text = row.get(index + 2)?;
    }
    // All rows are read, so that the statement completes.
    while rows.next()?.is_some() {}
    Ok(Some(Claimed { lease, texts }))
}

fn settle(
    conn: &Connection,
    now: i64,
    lease: Lease,
    events: &[String],
    parts: &str,
) -> rusqlite::Result<Result<i64, LeaseLost>> {
    if !insert(conn, now, lease, events)? {
        return Ok(Err(LeaseLost));
    }
    let mut settle = conn.prepare_cached(
        "UPDATE runs SET status = 'completed', cause = 'completed', settled_at = ?2, last_seq = last_seq + ?3,
             lease_worker = NULL, lease_expires_at = NULL
         WHERE key = ?1 RETURNING last_seq",
    )?;
    let last_seq = settle.query_row(params![lease.run, now, events.len() as i64], |row| row.get(0))?;
    let mut answer = conn.prepare_cached(
        "INSERT INTO messages (session_key, id, role, run_key, parts, metadata, position, created_at, updated_at)
         SELECT r.session_key, r.response_id, 'assistant', r.key, ?2, json_object('run_id', r.id, 'session_id', s.id),
             r.first_seq, ?3, ?3
         FROM runs r JOIN sessions s ON s.key = r.session_key WHERE r.key = ?1
         ON CONFLICT (session_key, id) DO UPDATE SET parts = excluded.parts, updated_at = excluded.updated_at",
    )?;
    answer.execute(params![lease.run, parts, now])?;
    Ok(Ok(last_seq))
}

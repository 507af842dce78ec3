//! Claim and settle, by workers that do nothing in between: on a small table, behind a long history, and behind a long
//! queue of one busy session. Finished runs, and runs that cannot start, must not make a claim slower.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mainstay::chunk::{Chunk, FinishReason};
use mainstay::run::{ExitReport, Outcome};
use mainstay::store::Store;
use mainstay::store::run::Settle;
use rusqlite::Connection;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::sample::{ROUNDS, Sample, Side, count, line};
use crate::scene::QUESTION;
use crate::{raw, scene};

const SESSIONS: usize = 256;
const HISTORY: usize = 1_000_000;
const BUSY_QUEUE: usize = 10_000;
const START: &str = r#"{"type":"start","messageId":"m"}"#;
const DELTA: &str =
    r#"{"type":"text-delta","id":"text-1","delta":"The missing index was the cause; it is there now."}"#;
const FINISH: &str = r#"{"type":"finish","finishReason":"stop"}"#;
const PARTS: &str = r#"[{"type":"text","text":"The missing index was the cause; it is there now.","state":"done"}]"#;

/// Prints the table.
pub fn measure(runtime: &Runtime) {
    let dir = scene::tempdir();
    let began = Instant::now();
    let tables = runtime.block_on(async {
        [
            ("small", Table::open(dir.path(), "small", |_| {}).await),
            ("1 M finished runs", Table::open(dir.path(), "history", add_history).await),
            ("10,000 queued of a busy session", Table::open(dir.path(), "queue", add_busy_session).await),
        ]
    });
    println!("  (files made in {:.0} s)", began.elapsed().as_secs_f64());
    line("runs/s", &["mainstay", "raw SQLite", "ratio", "to small", "raw"]);
    for workers in [1, 8, 32] {
        let mut sides = [(); 3].map(|()| (Side::default(), Side::default()));
        for _ in 0..ROUNDS {
            for ((_, table), (ours, raw)) in tables.iter().zip(&mut sides) {
                ours.push(runtime.block_on(table.round(workers)));
                raw.push(runtime.block_on(table.round_raw(workers)));
            }
        }
        let small = sides[0].clone();
        for ((name, _), (ours, raw)) in tables.iter().zip(&sides) {
            let columns = [
                count(ours.rate()),
                count(raw.rate()),
                format!("{:.2}", ours.ratio(raw)),
                format!("{:.2}", ours.ratio(&small.0)),
                format!("{:.2}", raw.ratio(&small.1)),
            ];
            line(&format!("{workers} workers, {name}"), &columns.each_ref().map(String::as_str));
        }
    }
}

/// A file for each side, with the same rows.
struct Table {
    store: Store,
    worker: i64,
    fill: Connection,
    writer: raw::Writer,
    fill_raw: Connection,
}

impl Table {
    async fn open(dir: &Path, name: &str, add: fn(&Connection)) -> Self {
        let path = scene::new_file(dir, &format!("{name}.db"), SESSIONS).await;
        let store = scene::open(&path).await;
        let worker = scene::register(&store).await;
        store.close().await;
        {
            let conn = scene::connect(&path);
            add(&conn);
            conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        }
        let raw = dir.join(format!("{name}-raw.db"));
        std::fs::copy(&path, &raw).unwrap();
        Self {
            store: scene::open(&path).await,
            worker,
            fill: scene::connect(&path),
            writer: raw::Writer::open(&raw, |_, _| {}),
            fill_raw: scene::connect(&raw),
        }
    }

    async fn round(&self, workers: usize) -> Sample {
        let (store, worker) = (self.store.clone(), self.worker);
        round(&self.fill, workers, move || {
            let store = store.clone();
            async move {
                let claimed = store.claim(scene::claim_request(worker, 1)).await.unwrap();
                let Some(claimed) = claimed.into_iter().next() else { return false };
                let settle = Settle {
                    lease: claimed.lease,
                    session: claimed.session,
                    run_id: claimed.run,
                    events: vec![Chunk::Finish { finish_reason: FinishReason::Stop, message_metadata: None }],
                    source_offset: 0,
                    outcome: Outcome::completed(),
                    exit: ExitReport::default(),
                    parts: Some(PARTS.into()),
                    progress: None,
                    resumes: 0,
                };
                store.settle(settle).await.unwrap().unwrap();
                true
            }
        })
        .await
    }

    async fn round_raw(&self, workers: usize) -> Sample {
        let (writer, worker) = (self.writer.clone(), self.worker);
        round(&self.fill_raw, workers, move || {
            let writer = writer.clone();
            async move {
                let Some(claimed) = writer.claim(worker).await else { return false };
                writer.settle(claimed.lease, vec![FINISH.into()], PARTS.into()).await.unwrap();
                true
            }
        })
        .await
    }
}

/// Enqueues enough for a good part of a second, then starts the workers.
async fn round<F, T>(fill: &Connection, workers: usize, turn: T) -> Sample
where
    T: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = bool> + Send,
{
    let runs = match workers {
        1 => 300,
        8 => 1_200,
        _ => 3_600,
    };
    scene::enqueue(fill, runs, 1, SESSIONS - 1);
    let done = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let (turn, done) = (turn.clone(), done.clone());
        tasks.spawn(async move {
            while done.load(Ordering::Relaxed) < runs {
                if turn().await {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    tasks.join_all().await;
    let elapsed = began.elapsed();
    assert_eq!(done.load(Ordering::Relaxed), runs);
    Sample::new(runs, elapsed, Vec::new())
}

/// A million finished runs of ten thousand sessions, the measured ones among them, with question and answer.
fn add_history(conn: &Connection) {
    let (sessions, runs) = (10_000, HISTORY);
    conn.execute_batch(&format!(
        "PRAGMA synchronous = OFF; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -200000;
         BEGIN;
         CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {runs} - 1) SELECT i FROM n;
         INSERT INTO sessions (key, id, workspace, agent, title, idle_ttl_ms, created_at, updated_at)
             SELECT i + 1, printf('session-%08d', i + 1), 'default', 'demo', 'A conversation', 1800000, 1700000000000, 1700000000000
             FROM n WHERE i BETWEEN {SESSIONS} AND {sessions} - 1;
         INSERT INTO messages (key, session_key, id, role, parts, position, created_at, updated_at)
             SELECT 2 * i + 1, i % {sessions} + 1, printf('m-%032x', i), 'user',
                 '{QUESTION}', i / {sessions} * 3 + 1,
                 1700000000000 + i, 1700000000000 + i FROM n;
         INSERT INTO runs (key, id, session_key, message_key, response_id, workspace, agent, slot_key, status, cause, queued_at,
                 claimed_at, settled_at, lease_token, first_seq, last_seq, said, exit_code)
             SELECT i + 1, printf('%08x-0000-7000-8000-%012x', i, i), i % {sessions} + 1, 2 * i + 1, printf('answer-%032x', i),
                 'default', 'demo', i % {SESSIONS} + 1, 'completed', 'completed', 1700000000000 + i, 1700000000000 + i,
                 1700000000000 + i + 900, 1, i / {sessions} * 3 + 1, i / {sessions} * 3 + 3, 1, 0 FROM n;
         INSERT INTO messages (key, session_key, id, role, run_key, parts, position, created_at, updated_at)
             SELECT 2 * i + 2, i % {sessions} + 1, printf('answer-%032x', i), 'assistant', i + 1, '{PARTS}',
                 i / {sessions} * 3 + 1, 1700000000000 + i, 1700000000000 + i FROM n;
         CREATE TEMP TABLE per_session AS SELECT session_key AS s, last_seq - 2 AS f, key AS r FROM runs ORDER BY 1, 2;
         INSERT INTO events SELECT s, f + e.key, r, 1700000000000, e.value FROM per_session
             CROSS JOIN json_each('[{START},{DELTA},{FINISH}]') e;
         UPDATE sessions SET last_seq = (SELECT max(last_seq) FROM runs WHERE session_key = sessions.key);
         COMMIT;"
    ))
    .unwrap();
}

/// A session that runs one run and has a long queue behind it, older than everything else that waits.
fn add_busy_session(conn: &Connection) {
    scene::enqueue(conn, BUSY_QUEUE + 1, SESSIONS, 1);
    conn.execute_batch(&format!(
        "UPDATE runs SET status = 'running', ready = 0, slot_key = {SESSIONS}, claimed_at = 1, lease_worker = 1,
             lease_token = 1, lease_expires_at = 1, first_seq = 1, last_seq = 1
         WHERE key = (SELECT key FROM runs WHERE session_key = {SESSIONS} AND ready = 1)"
    ))
    .unwrap();
}

//! Replay: the stored events of a run as SSE text, page by page; compared with a loop over the same rows that produces the same
//! text, and with Redis Streams if there is a `redis-server`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use mainstay::store::Store;
use mainstay::store::event::{Frames, Range};
use mainstay::store::run::Claimed;
use rusqlite::{Connection, params};
use tokio::runtime::Runtime;

use crate::redis::Redis;
use crate::sample::{ROUNDS, Sample, Side, count, line};
use crate::scene;

/// Rows per page; the same as the feed's.
const PAGE: i64 = 1000;
/// Runs that were written at the same time.
const INTERLEAVED: usize = 64;

/// Prints the table.
pub fn measure(runtime: &Runtime) {
    let dir = scene::tempdir();
    let mut redis = Redis::start(dir.path());
    line("events/s", &["mainstay", "raw SQLite", "ratio", "Redis", "ratio"]);
    for (name, runs, events) in [
        ("a run of 100,000 events", 1, 100_000),
        ("64 interleaved runs, 1 M events", INTERLEAVED, 1_000_000 / INTERLEAVED),
    ] {
        let (path, claimed) = runtime.block_on(scene::running(dir.path(), &format!("{runs}.db"), runs));
        fill(&path, &claimed, events, redis.as_mut());
        let store = runtime.block_on(scene::open(&path));
        let conn = scene::connect(&path);
        let [mut ours, mut raw, mut peer] = [(); 3].map(|()| Side::default());
        for _ in 0..ROUNDS {
            ours.push(timed(runs * events, || runtime.block_on(read(&store, &claimed))));
            raw.push(timed(runs * events, || read_raw(&conn, &claimed)));
            if let Some(redis) = &mut redis {
                peer.push(timed(runs * events, || claimed.iter().map(|run| redis.read(&key(run), PAGE)).sum()));
            }
        }
        let columns = [
            count(ours.rate()),
            count(raw.rate()),
            format!("{:.2}", ours.ratio(&raw)),
            count(peer.rate()),
            format!("{:.2}", ours.ratio(&peer)),
        ];
        line(name, &columns.each_ref().map(String::as_str));
    }
}

fn timed(expected: usize, read: impl FnOnce() -> usize) -> Sample {
    let began = Instant::now();
    // Each run also has its `start`.
    assert!(read() >= expected);
    Sample::new(expected, began.elapsed(), Vec::new())
}

/// Writes `events` of each run, a few of each in turn, to the file and to Redis.
fn fill(path: &Path, runs: &[Claimed], events: usize, mut redis: Option<&mut Redis>) {
    const AT_ONCE: usize = 10;
    let conn = scene::connect(path);
    let mut insert =
        conn.prepare("INSERT INTO events (session_key, seq, run_key, at, event) VALUES (?1, ?2, ?3, ?4, ?5)").unwrap();
    let mut written = 0;
    while written < events {
        let part = AT_ONCE.min(events - written);
        conn.execute_batch("BEGIN").unwrap();
        for run in runs {
            let texts: Vec<_> = (written..written + part).map(|number| scene::chunk(&number.to_string())).collect();
            for (number, text) in (written..).zip(&texts) {
                insert
                    .execute(params![run.session, number as i64 + 2, run.lease.run, 1_700_000_000_000_i64, text])
                    .unwrap();
            }
            if let Some(redis) = redis.as_deref_mut() {
                redis.add(&key(run), &texts);
            }
        }
        written += part;
        if written % 1000 == 0 || written == events {
            conn.execute("UPDATE runs SET last_seq = ?1, said = 1", [written as i64 + 1]).unwrap();
            conn.execute_batch("COMMIT").unwrap();
        } else {
            conn.execute_batch("COMMIT").unwrap();
        }
    }
}

fn key(run: &Claimed) -> String {
    format!("run:{}", run.lease.run)
}

async fn read(store: &Store, runs: &[Claimed]) -> usize {
    let mut rows = 0;
    for run in runs {
        let mut after = 0;
        let range = |after| Range { session: run.session, run: Some(run.lease.run), after, limit: PAGE };
        while let Some(frames) = store.frames(range(after), 256 * 1024).await.unwrap() {
            let Frames::Events { last_seq, .. } = std::hint::black_box(frames) else { panic!("no event is large") };
            rows += (last_seq - after) as usize;
            after = last_seq;
        }
    }
    rows
}

fn read_raw(conn: &Connection, runs: &[Claimed]) -> usize {
    let mut page = conn
        .prepare_cached(
            "SELECT seq, event FROM events WHERE session_key = ?1 AND seq > ?2 AND run_key = ?3 ORDER BY seq LIMIT 1000",
        )
        .unwrap();
    let mut total = 0;
    for run in runs {
        let mut after = 0;
        loop {
            let (mut text, mut found) = (String::new(), 0);
            let mut rows = page.query(params![run.session, after, run.lease.run]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                after = row.get(0).unwrap();
                let event = row.get_ref(1).unwrap().as_str().unwrap();
                // Writing to a string cannot fail.
                let _ = write!(text, "id: {after}\ndata: {event}\n\n");
                found += 1;
            }
            std::hint::black_box(text);
            total += found;
            if found == 0 {
                break;
            }
        }
    }
    total
}

//! Loss of power at any moment. A daemon works while all its file operations are recorded, and a client notes the answers that it
//! got. Then the power is cut at points of the record, and the files that may remain are opened as the next engine would.
//!
//! A sample of the points is tried; all of them with `MAINSTAY_POWER_LOSS=all`, which takes long.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use futures_util::future::join_all;
use mainstay::clock::SystemClock;
use mainstay::config::Durability;
use mainstay::store::Store;

use crate::replay::{Disk, Draw, Kind, Loss, Record, note};
use crate::scene::{Count, Daemon, Scene, check_file, until, within};
use crate::shim::{EIO, Fault, SYNC};

/// About this many points of a record are tried, unless all are.
const SAMPLE: u64 = 200;

/// What a client was told, and must find again.
#[derive(Debug)]
enum Known {
    Message { session: String, message: String, run: String },
    Event { session: String, seq: i64, event: String },
}

/// Notes the client's answers, in the record.
struct Notebook {
    known: Mutex<(Vec<Known>, std::fs::File)>,
}

impl Notebook {
    fn note(&self, known: Known) {
        let mut guard = self.known.lock().unwrap();
        guard.0.push(known);
        let line = note(guard.0.len());
        guard.1.write_all(&line).unwrap();
    }
}

/// Sends messages in a session, one after the other, and follows each to its end.
async fn converse(daemon: &Daemon, notes: &Notebook, session: &str, messages: std::ops::Range<usize>) {
    for number in messages {
        let message = format!("{session}-{number}");
        let run = loop {
            let sent = daemon.count(session, &message).await;
            match sent.status {
                200 | 202 => break sent.body["id"].as_str().unwrap().to_owned(),
                // A sync that failed.
                503 => {}
                _ => panic!("{sent:?}"),
            }
        };
        notes.note(Known::Message { session: session.to_owned(), message, run: run.clone() });
        let heard = |seq, event: &str| {
            notes.note(Known::Event { session: session.to_owned(), seq, event: event.to_owned() });
        };
        within(daemon.follow(&run, heard)).await;
    }
}

/// A record of a daemon at work, with this durability, and everything that its client was told. `disturb` runs meanwhile.
async fn recorded(durability: &str, disturb: impl AsyncFn(&Scene)) -> (Record, Vec<Known>) {
    let line = r#"{\"event\":\"agent\",\"stream\":\"assistant\",\"data\":{\"delta\":\"$i $text\"}}"#;
    let script = format!(
        "text=$(printf '%01500d' 7); i=0; while [ $i -lt 24 ]; do i=$((i+1)); echo \"{line}\"; sleep 0.004; done"
    );
    let scene = Scene::with_agent(&script, &format!("[engine]\ndurability = \"{durability}\"")).recording();
    let record = std::fs::OpenOptions::new().append(true).open(scene.record()).unwrap();
    let notes = Notebook { known: Mutex::new((Vec::new(), record)) };
    let daemon = scene.daemon();
    let sessions = join_all(["a", "b", "c", "d"].map(|session| converse(&daemon, &notes, session, 0..4)));
    tokio::select! {
        _ = sessions => {}
        never = async { loop { disturb(&scene).await; tokio::task::yield_now().await } } => never,
    }
    scene.shim.heal();
    // The record also has an orderly stop and a restart; it ends without a stop.
    daemon.stop();
    let daemon = scene.daemon();
    converse(&daemon, &notes, "a", 4..5).await;
    daemon.kill();
    (Record::read(&scene.record()), notes.known.into_inner().unwrap().0)
}

/// What is wrong with the remaining files.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error("the client was told of it, and it is not there: {0}")]
    Lost(String),
    #[error("the file cannot be used: {0}")]
    Broken(String),
}

/// A defect, and how it came about: the power was cut after this operation, with this loss.
struct Found {
    point: usize,
    loss: Loss,
    what: Wrong,
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "after operation {} with {:?}: {}", self.point, self.loss, self.what)
    }
}

fn assert_all_is_well(record: &Record, wrong: &[Found]) {
    let (count, points) = (wrong.len(), record.ops.len());
    assert!(wrong.is_empty(), "{count} times in {points} operations, such as {:#?}", &wrong[..count.min(5)]);
}

/// Opens the remaining files as the next engine would, and looks for what the client was told.
async fn check(found: BTreeMap<String, Vec<u8>>, known: &[Known]) -> Result<(), Wrong> {
    if !found.contains_key("m.db") {
        return known.first().map_or(Ok(()), |first| Err(Wrong::Lost(format!("{first:?}, with the whole file"))));
    }
    let place = [std::path::Path::new("/dev/shm")].into_iter().find(|place| place.is_dir());
    let dir = place.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
    for (name, bytes) in found {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let path = dir.path().join("m.db");
    let store = Store::open(&path, Durability::Full, Arc::new(SystemClock), Box::new(|_| ()), |_| true).await;
    let store = store.map_err(|error| Wrong::Broken(error.to_string()))?;
    let conn = rusqlite::Connection::open(&path).unwrap();
    check_file(&conn).map_err(Wrong::Broken)?;
    let pairs = |sql: &str| -> BTreeMap<(String, String), String> {
        let mut statement = conn.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    };
    let runs = pairs(
        "SELECT s.id, m.id, r.id FROM runs r JOIN messages m ON m.key = r.message_key JOIN sessions s ON s.key = r.session_key",
    );
    let events =
        pairs("SELECT s.id, CAST(e.seq AS TEXT), e.event FROM events e JOIN sessions s ON s.key = e.session_key");
    for one in known {
        let (there, wanted) = match one {
            Known::Message { session, message, run } => (runs.get(&(session.clone(), message.clone())), run),
            Known::Event { session, seq, event } => (events.get(&(session.clone(), seq.to_string())), event),
        };
        if there != Some(wanted) {
            return Err(Wrong::Lost(format!("{one:.60?}")));
        }
    }
    drop(conn);
    store.close().await;
    Ok(())
}

/// Cuts the power at points of the record. Returns the defects, and where they occurred.
async fn lose_power(record: &Record, known: &[Known], seed: u64) -> Vec<Found> {
    let all = std::env::var("MAINSTAY_POWER_LOSS").is_ok_and(|points| points == "all");
    let mut draw = Draw(seed);
    let mut disk = Disk::new(record, seed);
    let mut knows = 0;
    let mut wrong = Vec::new();
    let points = record.ops.len() as u64;
    let found_then = record.ops.iter().enumerate().flat_map(|(point, op)| {
        disk.apply(op);
        if let Kind::Noted { known } = op.kind {
            knows = known;
        }
        let mut losses =
            [10, 50, 90].map(|kept_percent| Loss::Some { kept_percent, seed: draw.below(u64::MAX) }).to_vec();
        losses.extend([Loss::Nothing, Loss::Everything]);
        if !all {
            let chosen = losses.swap_remove(usize::try_from(draw.below(losses.len() as u64)).unwrap());
            losses = if draw.below(points) < SAMPLE { vec![chosen] } else { vec![] };
        }
        losses.into_iter().map(|loss| (point, loss, disk.after(loss), &known[..knows])).collect::<Vec<_>>()
    });
    let mut checks = futures_util::stream::iter(found_then)
        .map(async |(point, loss, files, known)| (point, loss, check(files, known).await))
        .buffer_unordered(2);
    let mut tried = 0;
    while let Some((point, loss, outcome)) = checks.next().await {
        tried += 1;
        wrong.extend(outcome.err().map(|what| Found { point, loss, what }));
    }
    assert!(tried > SAMPLE / 2, "only {tried} points of {points} were tried");
    wrong
}

/// The record must contain a checkpoint, after which the WAL was restarted.
fn assert_checkpoints(record: &Record) {
    let begun = record.count("m.db-wal", |kind| matches!(kind, Kind::Wrote { offset: 0, .. }));
    let written_back = record.count("m.db", |kind| *kind == Kind::Synced);
    assert!(begun >= 2 && written_back >= 2, "the WAL was begun {begun} times, and written back {written_back} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_loss_of_power() {
    let (record, known) = recorded("full", async |_| std::future::pending().await).await;
    assert_checkpoints(&record);
    let wrong = lose_power(&record, &known, 1).await;
    assert_all_is_well(&record, &wrong);
    let wrong = lose_power(&record.without_syncs_of("m.db"), &known, 1).await;
    assert!(!wrong.is_empty(), "the WAL is begun anew before the database is safe, and nobody notices");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_loss_of_power_when_syncs_failed_before() {
    let files = ["m.db-wal", "m.db"];
    let failing = std::cell::Cell::new(0_u32);
    let (record, known) = recorded("full", async |scene| {
        let number = failing.replace(failing.get() + 1);
        // The database is synced at checkpoints, far less often than the WAL.
        let (files, let_through) = if number % 6 == 2 { (files[1], 0) } else { (files[0], number * 2 % 7) };
        scene.shim.fail(Fault { let_through, times: 1, files, ..Fault::all(SYNC, EIO) });
        until(|| scene.shim.hits() > 0).await;
    })
    .await;
    let failed = files.map(|file| record.count(file, |kind| *kind == Kind::SyncFailed));
    assert!(failed[0] >= 4 && failed[1] >= 1, "{failed:?}");
    let wrong = lose_power(&record, &known, 2).await;
    assert_all_is_well(&record, &wrong);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_sync_for_each_commit_the_last_ones_are_lost_but_the_file_is_whole() {
    let (record, known) = recorded("process", async |_| std::future::pending().await).await;
    let wrong = lose_power(&record, &known, 3).await;
    let broken: Vec<_> = wrong.iter().filter(|found| matches!(found.what, Wrong::Broken(_))).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(!wrong.is_empty(), "nothing was lost: this test would not notice if it was");
}

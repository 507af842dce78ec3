//! Backends across engines, beyond the limit, and after a reboot.

use std::time::Duration;

use mainstay::backend::BackendState;
use mainstay::engine::Depth;
use mainstay::id::{BackendId, RunId};
use mainstay::run::Status;

use super::{QUICK, close, left_of, lines, open, reaches, send, turn};
use crate::scene::{NOTHING, counts, marked, settled, until, within};

#[tokio::test]
async fn backend_is_left_to_the_next_engine() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "[engine]\non_shutdown = \"leave\"", QUICK).await;
    let first = turn(&engine, "live", "a", "x").await;
    close(engine).await;

    let engine = open(dir.path(), "", QUICK).await;
    let second = turn(&engine, "live", "a", "x").await;
    assert!(first.progress.is_some() && first.progress == second.progress, "{first:?}");
    let backends = engine.list_backends().await.unwrap();
    assert_eq!((backends.len(), backends[0].generation), (1, 1));
    close(engine).await;
    assert_eq!(left_of(&[backends[0].id]), NOTHING);
}

#[tokio::test]
async fn backend_of_a_stopped_engine_is_adopted_by_another_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (leave, stay) = ("[engine]\non_shutdown = \"leave\"", "[engine]\nsweep_interval = \"1d\"");
    let engine = open(dir.path(), leave, QUICK).await;
    turn(&engine, "live", "a", "x").await;
    let before = engine.list_backends().await.unwrap().remove(0);
    let next = open(dir.path(), stay, QUICK).await;
    next.sweep().await.unwrap();
    close(engine).await;
    within(async {
        while next.list_backends().await.unwrap()[0]
            .worker
            .as_ref()
            .is_none_or(|worker| before.worker.as_ref() == Some(worker))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    close(next).await;
    assert_eq!(left_of(&[before.id]), NOTHING);
}

#[tokio::test]
async fn backend_that_died_unwatched_is_not_restarted() {
    let dir = tempfile::tempdir().unwrap();
    for workspace in ["live", "gone"] {
        let engine = open(dir.path(), "[engine]\non_shutdown = \"leave\"", QUICK).await;
        turn(&engine, "live", workspace, "x").await;
        let backend = engine.list_backends().await.unwrap().remove(0);
        close(engine).await;
        // As if an older config had another name for the workspace.
        let db = rusqlite::Connection::open(dir.path().join("m.db")).unwrap();
        db.execute("UPDATE backends SET workspace = ?1", [workspace]).unwrap();
        drop(db);
        let started = lines(&dir.path().join("started")).len();
        if workspace == "gone" {
            let engine = open(dir.path(), "", QUICK).await;
            engine.sweep().await.unwrap();
            let left = engine.list_backends().await.unwrap().remove(0);
            assert_eq!((left.state, left.worker), (BackendState::Running, None), "no engine here can supervise it");
            close(engine).await;
        }
        let host = i32::try_from(backend.pid.unwrap()).unwrap();
        for pid in [vec![host], marked(RunId::from(backend.id))].concat() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            // It may have ended with its shim.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        until(|| left_of(&[backend.id]).is_empty()).await;
        let engine = open(dir.path(), "", QUICK).await;
        reaches(&engine, backend.id, BackendState::Stopped).await;
        assert_eq!(lines(&dir.path().join("started")).len(), started);
        close(engine).await;
    }
}

#[tokio::test]
async fn turn_in_a_backend_of_another_boot_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("goes-on"), "").unwrap();
    let engine = open(dir.path(), "[engine]\non_shutdown = \"leave\"", QUICK).await;
    let run = send(&engine, "live", "s", "hold").await;
    until(|| dir.path().join("turn-pid").exists()).await;
    let backend = engine.list_backends().await.unwrap().remove(0);
    close(engine).await;
    let db = rusqlite::Connection::open(dir.path().join("m.db")).unwrap();
    let host_of_turn: i32 = db.query_row("SELECT pid FROM runs", [], |row| row.get(0)).unwrap();
    let shims = vec![host_of_turn, i32::try_from(backend.pid.unwrap()).unwrap()];
    let marked = || [run, RunId::from(backend.id)].map(marked).concat();
    for pid in [shims, marked()].concat() {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        // It may have ended with its shim.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    until(|| marked().is_empty()).await;
    // It boots with another boot id.
    for table in ["runs", "backends"] {
        db.execute(&format!("UPDATE {table} SET pid_scope = 'former'"), []).unwrap();
    }
    db.execute("UPDATE workers SET pid_scope = 'former'", []).unwrap();
    drop(db);
    let engine = open(dir.path(), "", QUICK).await;
    assert_eq!(settled(&engine, run).await.cause.as_deref(), Some("shim_lost"));
    assert!(!dir.path().join("ending").exists(), "it is known to be dead");
    close(engine).await;
}

#[tokio::test]
async fn sessions_beyond_the_cap_replace_idle_ones() {
    let seed = std::env::var("WARM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("WARM_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "keep_warm\n[engine]\nmax_backends = 10", QUICK).await;
    let mut runs = Vec::new();
    for _ in 0..2 {
        for session in 0..50 {
            let what = *random.choice(["x", "x", "x", "crash-once", "crash-later", "hang"].iter()).unwrap();
            runs.push((what, send(&engine, "live", &format!("s{session}"), what).await));
        }
    }
    let (done, db) = (tokio_util::sync::CancellationToken::new(), dir.path().join("m.db"));
    let watching = {
        let done = done.clone();
        tokio::task::spawn_blocking(move || {
            let db = rusqlite::Connection::open(db).unwrap();
            let mut most = 0;
            while !done.is_cancelled() {
                let live = "SELECT count(*) FROM backends WHERE state <> 'stopped'";
                most = most.max(db.query_row(live, [], |row| row.get::<_, i64>(0)).unwrap());
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        })
    };
    for (what, id) in &runs {
        let run = settled(&engine, *id).await;
        // A backend that hung when the turn came, or died with the previous turn, is not this turn's fault.
        let expected: &[Status] = match *what {
            "crash-later" => &[Status::Failed],
            _ => &[Status::Completed, Status::Failed],
        };
        assert!(expected.contains(&run.status), "{what}: {run:?}");
        assert!(run.attempts <= 2, "{what}: {run:?}");
    }
    done.cancel();
    assert!(watching.await.unwrap() <= 10, "more live agents than may live");
    let said = counts(lines(&dir.path().join("said")));
    assert!(said.values().all(|times| *times == 1), "a turn was taken twice: {said:?}");
    for (what, id) in &runs {
        let run = engine.run(*id).await.unwrap();
        let was_said = said.contains_key(&id.to_string());
        assert_eq!(was_said, run.status == Status::Completed, "{what}: {run:?}");
    }
    assert!(!dir.path().join("doubled").exists(), "two turns at once in one session of an agent");

    // No turn uses them any more.
    within(async {
        while engine.list_backends().await.unwrap().iter().any(|backend| backend.state != BackendState::Stopped) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let audit = engine.audit(Depth::Full).await.unwrap();
    assert_eq!(audit.findings().collect::<Vec<_>>(), []);
    close(engine).await;
    until(|| {
        let left = std::fs::read_dir(dir.path().join("m.db-agents")).map_or(0, Iterator::count);
        left == 0
    })
    .await;
    let db = rusqlite::Connection::open(dir.path().join("m.db")).unwrap();
    let mut ids = db.prepare("SELECT id FROM backends").unwrap();
    let ids: Vec<BackendId> =
        ids.query_map([], |row| row.get::<_, String>(0)).unwrap().map(|id| id.unwrap().parse().unwrap()).collect();
    assert_eq!(left_of(&ids), NOTHING);
}

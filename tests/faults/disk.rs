//! Disks that are full, broken, or read-only for a while, under load.

use std::sync::Arc;

use crate::place::until_ready;
use crate::scene::{Answer, Count, Daemon, Scene, check_file, counted, stored_messages, until, within};
use crate::shim::{EIO, ENOSPC, EROFS, Fault, OPEN, REMOVE, SYNC, TRUNCATE, WRITE};

/// The fault outlasts the leases, which are renewed every third of this time.
const LEASES: &str = "[engine]\nlease = \"2s\"\nsweep_interval = \"1s\"";
/// This many renewals in a row fail before the fault goes away.
const RENEWALS: usize = 4;

/// Three running agents and a queued message while a fault comes and goes.
struct Load {
    scene: Scene,
    daemon: Arc<Daemon>,
    /// The text of each agent, as received by a client that followed all the time.
    heard: Vec<tokio::task::JoinHandle<String>>,
    runs: Vec<String>,
    refused: Vec<(String, String)>,
    log_bytes: usize,
}

impl Load {
    async fn begin() -> Self {
        let scene = Scene::new(LEASES);
        let daemon = Arc::new(scene.daemon());
        let mut load = Self { scene, daemon, heard: vec![], runs: vec![], refused: vec![], log_bytes: 0 };
        let (speaking, mut spoke) = tokio::sync::mpsc::channel(1);
        for session in ["a", "b", "c"] {
            let run = load.daemon.count(session, &format!("{session}-1")).await.run();
            load.runs.push(run.clone());
            let (daemon, mut speaking) = (load.daemon.clone(), Some(speaking.clone()));
            load.heard.push(tokio::spawn(async move {
                let heard = |_, event: &str| {
                    if event.contains("text-delta") {
                        speaking.take();
                    }
                };
                daemon.follow(&run, heard).await
            }));
        }
        drop(speaking);
        load.runs.push(load.daemon.count("a", "a-2").await.run());
        // The channel carries nothing: it ends once all agents have spoken.
        assert_eq!(within(spoke.recv()).await, None::<()>);
        load
    }

    /// During the fault: writes are refused with this code, reads are served, and leases cannot be renewed.
    async fn suffer(&mut self, code: &str) {
        for (number, session) in [(1, "a"), (2, "new"), (3, "new")] {
            let message = format!("refused-{number}");
            let sent = self.daemon.count(session, &message).await;
            assert_eq!(sent.refused(), (503, code), "{sent:?}");
            self.refused.push((session.to_owned(), message));
        }
        let Answer { status, body, .. } = self.daemon.get("/readyz").await;
        assert_eq!((status, body["error"]["code"].as_str()), (503, Some(code)));
        assert_eq!(self.daemon.get("/healthz").await.status, 200);
        assert_eq!(self.daemon.get("/v1/sessions/a/messages").await.status, 200);
        let (scene, from) = (&self.scene, self.log_bytes);
        until(|| scene.logged_since(from, "failed to renew leases") >= RENEWALS).await;
        let stored = stored_messages(&self.scene.open());
        let refused =
            self.refused.iter().filter(|(session, id)| stored.get(session).is_some_and(|all| all.contains(id)));
        assert_eq!(refused.count(), 0, "what was refused is stored: {stored:?}");
    }

    /// After the fault: everything that was accepted completes, word for word, and what was refused can be sent again.
    async fn recover(mut self) -> (Scene, Arc<Daemon>) {
        for (session, message) in &self.refused {
            self.runs.push(self.daemon.count(session, message).await.run());
        }
        for heard in self.heard {
            assert_eq!(within(heard).await.unwrap(), counted(), "a reader who was there all the time");
        }
        for run in &self.runs {
            let settled = within(self.daemon.settled(run)).await;
            assert_eq!(settled["status"], "completed", "{settled}");
            assert_eq!(self.daemon.follow(run, |_, _| ()).await, counted(), "a reader who came later");
        }
        until_ready(&self.daemon).await;
        check_file(&self.scene.open()).unwrap();
        (self.scene, self.daemon)
    }
}

fn stop(daemon: Arc<Daemon>) {
    Arc::into_inner(daemon).unwrap().stop();
}

/// A fault comes and goes under load.
async fn survives(fault: Fault, code: &str) {
    let mut load = Load::begin().await;
    load.log_bytes = load.scene.logged().len();
    load.scene.shim.fail(fault);
    load.suffer(code).await;
    load.scene.shim.heal();
    let (_scene, daemon) = load.recover().await;
    stop(daemon);
}

#[tokio::test]
async fn a_full_disk_loses_nothing() {
    survives(Fault::all(WRITE | TRUNCATE, ENOSPC), "disk_full").await;
}

#[tokio::test]
async fn a_disk_that_fails_to_write_loses_nothing() {
    survives(Fault::all(WRITE, EIO), "disk_failed").await;
}

#[tokio::test]
async fn a_disk_that_fails_to_sync_loses_nothing() {
    survives(Fault::all(SYNC, EIO), "disk_failed").await;
}

#[tokio::test]
async fn a_disk_that_writes_half_of_it_loses_nothing() {
    survives(Fault { kept_bytes: 700, ..Fault::all(WRITE, EIO) }, "disk_failed").await;
}

#[tokio::test]
async fn a_disk_that_becomes_read_only_loses_nothing() {
    survives(Fault::all(OPEN | WRITE | TRUNCATE | REMOVE, EROFS), "disk_failed").await;
}

#[tokio::test]
async fn a_slow_disk_only_takes_longer() {
    let load = Load::begin().await;
    load.scene.shim.fail(Fault { delay_ms: 50, ..Fault::all(SYNC, 0) });
    let (_scene, daemon) = load.recover().await;
    stop(daemon);
}

#[tokio::test]
async fn a_write_that_fails_now_and_then_is_seen_by_nobody_but_who_asked() {
    let load = Load::begin().await;
    let scene = &load.scene;
    // Each time at another point: the first frame of a transaction, one in the middle, the sync after it.
    for let_through in 0..12 {
        scene.shim.fail(Fault {
            let_through,
            times: 1,
            kept_bytes: let_through * 400,
            ..Fault::all(WRITE | SYNC, EIO)
        });
        until(|| scene.shim.hits() > 0 || load.heard.iter().all(|reader| reader.is_finished())).await;
    }
    scene.shim.heal();
    let (_scene, daemon) = load.recover().await;
    stop(daemon);
}

/// The engine dies during a fault: its last refused write is there completely or not at all, and never twice.
async fn survives_a_crash(fault: Fault) {
    let mut load = Load::begin().await;
    load.log_bytes = load.scene.logged().len();
    load.scene.shim.fail(fault);
    load.suffer("disk_failed").await;
    let Load { scene, daemon, heard, .. } = load;
    for reader in heard {
        reader.abort();
        assert!(reader.await.is_err());
    }
    Arc::into_inner(daemon).unwrap().kill();
    scene.shim.heal();
    let daemon = scene.daemon();
    check_file(&scene.open()).unwrap();
    let (first, again) = (daemon.count("new", "refused-2").await, daemon.count("new", "refused-2").await);
    assert!(matches!((first.status, again.status), (200 | 202, 200)), "{first:?} {again:?}");
    assert_eq!(first.body["id"], again.body["id"]);
    assert_eq!(within(daemon.settled(first.body["id"].as_str().unwrap())).await["status"], "completed");
    daemon.stop();
}

#[tokio::test]
async fn an_engine_that_dies_after_half_a_write_leaves_no_half_commit() {
    survives_a_crash(Fault { let_through: 3, kept_bytes: 2000, ..Fault::all(WRITE, EIO) }).await;
}

#[tokio::test]
async fn an_engine_that_dies_after_a_failed_sync_leaves_no_half_commit() {
    survives_a_crash(Fault::all(SYNC, EIO)).await;
}

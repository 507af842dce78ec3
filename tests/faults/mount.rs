//! Real file systems: a small one that fills up, and a read-only one. Each daemon has a mount of its own, which no other process
//! sees and which ends with it. If that is not allowed, the tests report that they were skipped.

use std::path::PathBuf;
use std::process::Command;

use crate::scene::{Count, Daemon, Scene, check_file, counted, skipped, until, within};
use crate::stderr::does_its_work;

/// A command prefix that gives a process mounts of its own, if that is allowed here.
pub fn namespace() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    ways.into_iter().find(|way| {
        let tried = Command::new("unshare").args(*way).args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    })
}

/// The directory of the database, as the daemon sees it.
fn seen_by(daemon: &Daemon, scene: &Scene) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", daemon.child.id(), scene.home.display()))
}

#[tokio::test]
async fn a_real_disk_that_fills_up_and_gets_room_again_loses_nothing() {
    let Some(namespace) = namespace() else { return skipped("no file system may be mounted here to be filled up") };
    let scene = Scene::new("");
    let command = scene.serve_in(namespace, "mount -t tmpfs -o size=6m none \"$0\"").spawn().unwrap();
    let daemon = scene.ready(command).unwrap_or_else(|_| panic!("it did not start: {}", scene.logged()));
    let home = seen_by(&daemon, &scene);
    let running = daemon.count("speaking", "first").await.run();

    let filler = home.join("filler");
    let error = std::fs::write(&filler, vec![7; 8_000_000]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    // There may be room left in the WAL.
    let long = "x".repeat(100_000);
    let (mut accepted, mut number) = (vec![], 0);
    let refused = loop {
        let sent = within(daemon.post_message("waiting", &format!("m{number}"), &long)).await;
        if sent.status != 202 {
            break sent;
        }
        accepted.push(sent.run());
        number += 1;
    };
    assert_eq!(refused.refused(), (503, "disk_full"));
    assert_eq!(daemon.get("/v1/sessions/speaking/messages").await.status, 200);
    std::fs::remove_file(&filler).unwrap();

    let last = daemon.count("waiting", &format!("m{number}")).await.run();
    for run in &accepted {
        daemon.request(reqwest::Method::POST, &format!("/v1/runs/{run}/cancel")).send().await.unwrap();
    }
    for run in [running, last] {
        assert_eq!(within(daemon.follow(&run, |_, _| ())).await, counted());
    }
    for run in accepted {
        assert_ne!(within(daemon.settled(&run)).await["settled_at"], serde_json::Value::Null);
    }
    // SQLite would look for the file in the test's own mounts: so a copy is checked, made while the daemon is stopped.
    daemon.signal("STOP");
    until(|| daemon.is_stopped()).await;
    for name in ["m.db", "m.db-wal"] {
        std::fs::copy(home.join(name), scene.home.join(name)).unwrap();
    }
    daemon.signal("CONT");
    check_file(&scene.open()).unwrap();
    daemon.stop();
}

#[tokio::test]
async fn a_disk_that_may_only_be_read_is_a_clear_error_at_start() {
    let Some(namespace) = namespace() else { return skipped("no file system may be mounted here to be read only") };
    let scene = Scene::new("");
    scene.daemon().stop();
    let before = std::fs::read(&scene.db).unwrap();
    let read_only = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\"";
    let ended = scene.ready(scene.serve_in(namespace, read_only).spawn().unwrap());
    assert_eq!(ended.err().and_then(|status| status.code()), Some(1));
    let logged = scene.logged();
    assert!(logged.contains("cannot be opened for writing") && logged.contains("must be writable"), "{logged}");
    assert_eq!(std::fs::read(&scene.db).unwrap(), before);
    let daemon = scene.daemon();
    assert_eq!(within(daemon.settled(&daemon.count("s", "m").await.run())).await["status"], "completed");
    daemon.stop();
}

/// An agent that needs its temporary directory.
const USES_TMPDIR: &str =
    r#"echo x >"$TMPDIR/file" && echo '{"event":"agent","stream":"assistant","data":{"delta":"word"}}'"#;

#[tokio::test]
async fn nothing_but_the_directory_of_the_database_is_needed() {
    let Some(namespace) = namespace() else { return skipped("no file system may be mounted here to be read only") };
    let scene = Scene::with_agent(USES_TMPDIR, "");
    // The system's temporary directories are read-only with everything else, the directory of the database is not.
    let read_only =
        "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro / && ! touch /tmp/probe 2>/dev/null && cd /";
    let daemon = scene.ready(scene.serve_in(namespace, read_only).spawn().unwrap());
    let daemon = daemon.unwrap_or_else(|_| panic!("it did not start: {}", scene.logged()));
    does_its_work(&daemon).await;
    assert!(scene.logged().contains("temporary directories beside the database"), "{}", scene.logged());
    daemon.stop();
    assert_eq!(std::fs::read_dir(scene.home.join("m.db-agents")).unwrap().count(), 0, "all were removed");
}

#[tokio::test]
async fn a_full_temporary_directory_stops_nothing() {
    let Some(namespace) = namespace() else { return skipped("no file system may be mounted here to be filled up") };
    let scene = Scene::with_agent(USES_TMPDIR, "");
    std::fs::create_dir(scene.home.join("full")).unwrap();
    let full = "mount -t tmpfs -o size=16k none \"$0/full\" && ! head -c 100000 /dev/zero >\"$0/full/x\" 2>/dev/null";
    let mut command = scene.serve_in(namespace, full);
    command.env("TMPDIR", scene.home.join("full"));
    let daemon = scene.ready(command.spawn().unwrap());
    let daemon = daemon.unwrap_or_else(|_| panic!("it did not start: {}", scene.logged()));
    does_its_work(&daemon).await;
    daemon.stop();
}

#[tokio::test]
async fn an_empty_tmpdir_is_said_and_stops_nothing() {
    let scene = Scene::with_agent(USES_TMPDIR, "");
    for tmpdir in ["", "/no/such/directory", "relative"] {
        let daemon = scene.ready(scene.serve().env("TMPDIR", tmpdir).spawn().unwrap()).unwrap();
        let run = daemon.count("s", &format!("m{}", tmpdir.len())).await.run();
        assert_eq!(within(daemon.settled(&run)).await["status"], "completed");
        daemon.stop();
        let said = format!("TMPDIR is {tmpdir}");
        let expected = if tmpdir.starts_with('/') { tmpdir } else { said.trim_end() };
        assert!(scene.logged().contains(expected), "{}", scene.logged());
    }
}

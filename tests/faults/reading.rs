//! Read-only commands: they work where nothing may be written, and leave nothing behind.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::mount::namespace;
use crate::scene::{Count, Scene, skipped, within};
use crate::user::{as_user, commands_that_read, listing, mainstay, said};

/// A scene whose config is beside its database, with a session that has an answer.
async fn answered() -> Scene {
    let scene = Scene::with_agent(
        r#"cat >/dev/null; echo '{"event":"agent","stream":"assistant","data":{"delta":"yes"}}'"#,
        "",
    );
    fs::copy(&scene.config, scene.home.join("mainstay.toml")).unwrap();
    let daemon = scene.daemon();
    within(daemon.settled(&daemon.count("s", "m").await.run())).await;
    daemon.stop();
    scene
}

/// All read-only commands succeed through `run`, and nothing in the directory changes.
fn all_read(scene: &Scene, run: impl Fn(&[&str]) -> Output) {
    let before = listing(&scene.home);
    for command in commands_that_read().into_iter().filter(|command| command[0] != "backup") {
        let (code, text) = said(&run(&[&command[..], &["--db", scene.db.to_str().unwrap()]].concat()));
        assert_eq!(code, Some(0), "{command:?}: {text}");
        assert_eq!(listing(&scene.home), before, "{command:?} changed something");
    }
    let (_, messages) = said(&run(&["messages", "s", "--json", "--db", scene.db.to_str().unwrap()]));
    assert!(messages.contains("\"yes\""), "{messages}");
}

fn by_us(scene: &Scene) -> impl Fn(&[&str]) -> Output {
    |args| mainstay(&scene.home).args(args).output().unwrap()
}

fn on_read_only_mount(scene: &Scene, namespace: &'static [&'static str]) -> impl Fn(&[&str]) -> Output {
    move |args| {
        let mount = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && cd \"$0\" && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(namespace).args(["sh", "-c", mount]).arg(&scene.home).arg(env!("CARGO_BIN_EXE_mainstay"));
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }
}

/// Gives its files to a service, and lets a group read them. Without the config beside the database, which other users
/// would have to name.
fn give_to(scene: &Scene, uid: u32, gid: u32) {
    fs::remove_file(scene.home.join("mainstay.toml")).unwrap();
    for dir in [scene.home.clone(), scene.home.parent().unwrap().to_owned()] {
        let paths = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).chain([dir.clone()]);
        for path in paths.collect::<Vec<PathBuf>>() {
            chown(&path, Some(uid), Some(gid)).unwrap();
            // The token stays private: a daemon refuses one that a group may read.
            let is_token = path == testkit::token_file(&scene.db);
            let mode = if path.is_dir() { 0o750 } else { 0o640 };
            fs::set_permissions(&path, Permissions::from_mode(if is_token { 0o600 } else { mode })).unwrap();
        }
    }
}

#[tokio::test]
async fn commands_that_read_leave_nothing_behind() {
    let scene = answered().await;
    all_read(&scene, by_us(&scene));
    let copies = tempfile::tempdir().unwrap();
    let copy = |name: &str| copies.path().join(name).to_str().unwrap().to_owned();
    // While a backup runs, it has a note in the directory of agents.
    let but_agents = || {
        let mut listing = listing(&scene.home);
        listing.remove("m.db-agents").map(|_| listing)
    };
    let before = but_agents();
    assert_eq!(said(&by_us(&scene)(&["backup", &copy("a"), "--db", scene.db.to_str().unwrap()])).0, Some(0));
    assert_eq!(but_agents(), before);
    let daemon = scene.daemon();
    within(daemon.settled(&daemon.count("s", "m2").await.run())).await;
    // The daemon writes by itself, for example heartbeats: it is stopped meanwhile.
    daemon.signal("STOP");
    crate::scene::until(|| daemon.is_stopped()).await;
    all_read(&scene, by_us(&scene));
    daemon.signal("CONT");
    daemon.kill();
    assert!(scene.wal_bytes() > 0);
    all_read(&scene, |args| match args[0] {
        // The doctor reports a killed daemon's worker as a finding.
        "doctor" => by_us(&scene)(&["runs", "--db", scene.db.to_str().unwrap()]),
        _ => by_us(&scene)(args),
    });
    let before = but_agents();
    assert_eq!(said(&by_us(&scene)(&["backup", &copy("b"), "--db", scene.db.to_str().unwrap()])).0, Some(0));
    assert_eq!(but_agents(), before);
}

#[tokio::test]
async fn commands_that_read_work_on_a_read_only_mount() {
    let Some(namespace) = namespace() else { return skipped("no file system may be mounted here to be read only") };
    let scene = answered().await;
    all_read(&scene, on_read_only_mount(&scene, namespace));
    let daemon = scene.daemon();
    within(daemon.settled(&daemon.count("s", "m2").await.run())).await;
    daemon.kill();
    let (code, text) =
        said(&on_read_only_mount(&scene, namespace)(&["runs", "--json", "--db", scene.db.to_str().unwrap()]));
    assert_eq!((code, text.lines().count()), (Some(0), 2), "with what is in the WAL only: {text}");
}

#[tokio::test]
async fn a_user_in_the_group_reads_beside_a_daemon() {
    const SERVICE: u32 = 64_323;
    const READERS: u32 = 64_324;
    const READER: u32 = 64_325;
    let (Some(_), Some(reader)) = (as_user(SERVICE, READERS), as_user(READER, READERS)) else {
        return skipped("this needs root, setpriv and a reachable binary");
    };
    let scene = answered().await;
    give_to(&scene, SERVICE, READERS);
    all_read(&scene, |args| reader(&scene.home, args));
    let daemon = scene.daemon();
    within(daemon.settled(&daemon.count("s", "m2").await.run())).await;
    let runs = |args: &[&str]| said(&reader(&scene.home, args));
    let (code, text) = runs(&["runs", "--json", "--db", scene.db.to_str().unwrap()]);
    assert_eq!((code, text.lines().count()), (Some(0), 2), "{text}");
    let refused = runs(&["send", "s", "hi", "--db", scene.db.to_str().unwrap()]);
    assert!(refused.0 == Some(1) && refused.1.contains("cannot be opened for writing"), "{}", refused.1);
    daemon.kill();
    let (code, text) = runs(&["runs", "--json", "--db", scene.db.to_str().unwrap()]);
    assert_eq!((code, text.lines().count()), (Some(0), 2), "{text}");
    // An index that it may not read is as useless as none, and it cannot create one.
    for (change, named) in [(0o600, "m.db-shm"), (0o640, "its index")] {
        fs::set_permissions(scene.home.join("m.db-shm"), Permissions::from_mode(change)).unwrap();
        if change == 0o640 {
            fs::remove_file(scene.home.join("m.db-shm")).unwrap();
        }
        let (code, text) = runs(&["runs", "--db", scene.db.to_str().unwrap()]);
        assert!(code == Some(1) && text.contains(named) && text.contains("cannot be read"), "{text}");
    }
}

#[tokio::test]
async fn root_that_reads_before_the_service_starts_is_not_noticed() {
    const SERVICE: u32 = 64_326;
    let Some(service) = as_user(SERVICE, SERVICE) else {
        return skipped("this needs root, setpriv and a reachable binary");
    };
    let scene = answered().await;
    for companion in ["m.db-lock", "m.db-agents"] {
        let path = scene.home.join(companion);
        if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
    }
    give_to(&scene, SERVICE, SERVICE);
    all_read(&scene, by_us(&scene));
    let (code, text) = said(&service(&scene.home, &["send", "s", "hi", "--db", scene.db.to_str().unwrap()]));
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test]
async fn a_wal_without_its_index_is_refused_with_the_reason() {
    let scene = answered().await;
    let daemon = scene.daemon();
    within(daemon.settled(&daemon.count("s", "m2").await.run())).await;
    daemon.kill();
    fs::remove_file(scene.home.join("m.db-shm")).unwrap();
    let before = listing(&scene.home);
    for command in commands_that_read() {
        let (code, text) = said(&by_us(&scene)(&[&command[..], &["--db", scene.db.to_str().unwrap()]].concat()));
        assert!(code == Some(1) && text.contains("m.db-wal") && text.contains("mainstay sweep"), "{command:?}: {text}");
        assert_eq!(listing(&scene.home), before, "{command:?} changed something");
    }
    assert_eq!(said(&by_us(&scene)(&["sweep", "--db", scene.db.to_str().unwrap()])).0, Some(0));
    let (_, text) = said(&by_us(&scene)(&["runs", "--json", "--db", scene.db.to_str().unwrap()]));
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[tokio::test]
async fn attach_follows_a_daemon_that_comes_later() {
    let scene = answered().await;
    let db = scene.db.to_str().unwrap();
    let run = said(&by_us(&scene)(&["send", "s", "hi", "--db", db])).1.lines().next().unwrap().to_owned();
    let mut attached = mainstay(&scene.home);
    attached.args(["attach", &run, "--db", db, "--format", "ndjson"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut attached = attached.spawn().unwrap();
    let mut warned = String::new();
    BufReader::new(attached.stderr.as_mut().unwrap()).read_line(&mut warned).unwrap();
    assert!(warned.contains("no process executes runs"), "{warned}");
    let daemon = scene.daemon();
    let mut events = String::new();
    attached.stdout.as_mut().unwrap().read_to_string(&mut events).unwrap();
    assert!(attached.wait().unwrap().success());
    let kinds: Vec<_> = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect();
    let kinds: Vec<_> = kinds.iter().map(|event| event["event"]["type"].as_str().unwrap()).collect();
    let expected = ["start", "start-step", "text-start", "text-delta", "text-end", "finish-step", "finish"];
    assert_eq!(kinds, expected, "each event once");
    daemon.stop();
}

/// System calls that change files.
const CHANGES: &str = "write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,ftruncate,truncate,fallocate,chmod,\
                       fchmod,fchmodat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,link,linkat,symlink";

#[tokio::test]
async fn no_call_of_a_command_that_reads_changes_a_file() {
    if Command::new("strace").arg("-V").output().is_err() {
        return skipped("there is no strace to look at calls");
    }
    let scene = answered().await;
    let trace = scene.home.parent().unwrap().join("trace");
    let look = |when: &str| {
        for command in commands_that_read().into_iter().filter(|command| !["backup", "doctor"].contains(&command[0])) {
            let mut traced = Command::new("strace");
            traced.args(["-f", "-y", "-qq", "-o"]).arg(&trace).args(["-e", &format!("trace=openat,{CHANGES}")]);
            traced.arg(env!("CARGO_BIN_EXE_mainstay")).args(&command).arg("--db").arg(&scene.db);
            let output = traced.current_dir(&scene.home).stdin(Stdio::null()).output().unwrap();
            assert!(output.status.success(), "{command:?}: {}", said(&output).1);
            let calls = fs::read_to_string(&trace).unwrap();
            assert!(calls.contains("m.db"), "the trace is empty: {calls}");
            let changes = calls.lines().filter(|call| is_change(call, &scene.home)).collect::<Vec<_>>();
            assert_eq!(changes, Vec::<&str>::new(), "{command:?} {when}");
        }
    };
    look("while nothing runs");
    let daemon = scene.daemon();
    within(daemon.settled(&daemon.count("s", "m2").await.run())).await;
    look("beside a daemon");
    daemon.kill();
    look("after a crash");
}

/// Whether a traced call changes something in a directory. SQLite opens an existing WAL for writing without writing to it.
fn is_change(call: &str, home: &Path) -> bool {
    // The second part of a call that strace showed before has no arguments.
    let is_there = call.contains(home.to_str().unwrap()) && !call.contains(" resumed>");
    let opens = call.contains("openat(");
    is_there && (!opens || call.contains("O_TRUNC") || (call.contains("O_CREAT") && !call.contains("m.db-wal\"")))
}

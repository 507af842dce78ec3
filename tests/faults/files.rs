//! Files of other users, and the daemon's own files under several names or with permissions that their owner chose: a path is
//! checked before anything there is changed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mkfifoat, mknodat};

use crate::mount::namespace;
use crate::scene::{Count, Scene, skipped, stored_messages, within};
use crate::user::{as_user, commands_that_read, listing, mainstay, said};

/// Commands that would write to a database.
const WRITING: [&[&str]; 5] = [
    &["serve", "--listen", "127.0.0.1:0"],
    &["send", "s", "hi"],
    &["sweep"],
    &["cancel", "s"],
    &["session", "s", "--new"],
];

/// All commands are refused with these words, and change nothing in the directory of `db`.
fn refused(db: &Path, words: &str) {
    let dir = db.parent().unwrap();
    let before = listing(dir);
    for command in commands_that_read().into_iter().chain(WRITING.map(<[&str]>::to_vec)) {
        let output = mainstay(dir).args(&command).arg("--db").arg(db).output().unwrap();
        let (code, text) = said(&output);
        assert_eq!(code, Some(1), "{command:?}: {text}");
        assert!(text.contains(words), "{command:?}: {text}");
        assert_eq!(listing(dir), before, "{command:?} changed something");
    }
}

#[test]
fn what_is_no_regular_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    fs::create_dir(home.join("dir")).unwrap();
    refused(&home.join("dir"), "is a directory");
    // Opening it for reading would block until there is a writer.
    mkfifoat(CWD, home.join("pipe"), Mode::from_raw_mode(0o644)).unwrap();
    refused(&home.join("pipe"), "is a named pipe");
    symlink(home.join("pipe"), home.join("link")).unwrap();
    refused(&home.join("link"), "is a named pipe");
    let null = mknodat(CWD, home.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3));
    if null.is_err() {
        return skipped("no device may be made here");
    }
    fs::set_permissions(home.join("null"), Permissions::from_mode(0o666)).unwrap();
    refused(&home.join("null"), "is a device");
}

#[test]
fn files_of_other_programs_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    for (name, text) in [("short.txt", "notes"), ("long.txt", &"my notes, line by line\n".repeat(99) as &str)] {
        fs::write(home.join(name), text).unwrap();
        refused(&home.join(name), "is not a mainstay database");
    }
    let other = home.join("other.db");
    let conn = rusqlite::Connection::open(&other).unwrap();
    conn.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    fs::set_permissions(&other, Permissions::from_mode(0o644)).unwrap();
    refused(&other, "is not a mainstay database");
    // All content is in the WAL, which must not be checkpointed.
    let fresh = home.join("fresh.db");
    let conn = rusqlite::Connection::open(&fresh).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x)").unwrap();
    for name in ["fresh.db", "fresh.db-wal", "fresh.db-shm"] {
        fs::create_dir_all(home.join("copy")).unwrap();
        fs::copy(home.join(name), home.join("copy").join(name)).unwrap();
    }
    refused(&home.join("copy/fresh.db"), "is not a mainstay database");
    drop(conn);
}

#[test]
fn rights_that_an_owner_gave_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    assert!(mainstay(home).args(["send", "s", "hi"]).output().unwrap().status.success());
    let db = home.join("mainstay.db");
    let mode = |name: &str| fs::metadata(home.join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("mainstay.db"), mode("mainstay.db-lock"), mode("mainstay.db-agents")), (0o600, 0o600, 0o700));
    fs::remove_file(home.join("mainstay.db-lock")).unwrap();
    fs::remove_dir_all(home.join("mainstay.db-agents")).unwrap();
    fs::set_permissions(&db, Permissions::from_mode(0o640)).unwrap();
    let reader = rusqlite::Connection::open(&db).unwrap();
    reader.query_row("SELECT count(*) FROM runs", [], |_| Ok(())).unwrap();
    assert!(mainstay(home).args(["send", "s", "hi"]).output().unwrap().status.success());
    for name in ["mainstay.db", "mainstay.db-wal", "mainstay.db-shm", "mainstay.db-lock"] {
        assert_eq!(mode(name), 0o640, "{name}");
    }
    assert_eq!(mode("mainstay.db-agents"), 0o750);
}

#[tokio::test]
async fn root_does_not_lock_the_service_out() {
    const SERVICE: u32 = 64_321;
    let Some(service) = as_user(SERVICE, SERVICE) else {
        return skipped("this needs root, setpriv and a reachable binary");
    };
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    chown(home, Some(SERVICE), Some(SERVICE)).unwrap();
    assert!(service(home, &["send", "s", "hi"]).status.success());
    for companion in ["mainstay.db-lock", "mainstay.db-agents"] {
        let path = home.join(companion);
        if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
    }
    assert!(mainstay(home).args(["send", "s", "by root", "--db", "./mainstay.db"]).output().unwrap().status.success());
    for entry in fs::read_dir(home).unwrap().map(Result::unwrap) {
        let meta = entry.metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (SERVICE, SERVICE), "{:?}", entry.path());
    }
    assert!(service(home, &["send", "s", "hi"]).status.success());
    // The error names the file that is in the way.
    for companion in ["mainstay.db-lock", "mainstay.db-agents"] {
        chown(home.join(companion), Some(0), Some(0)).unwrap();
        let (code, text) = said(&service(home, &["send", "s", "hi"]));
        assert!(code == Some(1) && text.contains(companion) && text.contains("belongs to uid 0"), "{text}");
        chown(home.join(companion), Some(SERVICE), Some(SERVICE)).unwrap();
    }
}

#[tokio::test]
async fn a_group_reads_what_a_running_service_writes() {
    const SERVICE: u32 = 64_328;
    const READERS: u32 = 64_329;
    // The service is in the readers' group, and has another primary group.
    let groups = ["--reuid=64328", "--regid=64328", "--groups=64329"];
    let service = |home: &Path, args: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command.args(groups).arg(env!("CARGO_BIN_EXE_mainstay")).args(args).current_dir(home);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).spawn().unwrap()
    };
    let Some(reader) = as_user(READERS + 1, READERS) else {
        return skipped("this needs root, setpriv and a reachable binary");
    };
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    chown(home, Some(SERVICE), Some(READERS)).unwrap();
    fs::set_permissions(home, Permissions::from_mode(0o750)).unwrap();
    assert!(service(home, &["send", "s", "hi"]).wait().unwrap().success());
    chown(home.join("mainstay.db"), Some(SERVICE), Some(READERS)).unwrap();
    fs::set_permissions(home.join("mainstay.db"), Permissions::from_mode(0o640)).unwrap();
    let mut daemon = service(home, &["serve", "--listen", "127.0.0.1:0", "--workers", "0"]);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(daemon.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert!(line.starts_with("listening on"), "{line}");
    for name in ["mainstay.db-wal", "mainstay.db-shm", "mainstay.db-lock", "mainstay.db-agents"] {
        let meta = fs::metadata(home.join(name)).unwrap();
        let mode = if meta.is_dir() { 0o750 } else { 0o640 };
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (SERVICE, READERS, mode), "{name}");
    }
    let (code, text) = said(&reader(home, &["runs", "--json"]));
    assert_eq!((code, text.lines().count()), (Some(0), 1), "{text}");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[tokio::test]
async fn names_of_one_file_share_its_lock_and_wal() {
    let scene = Scene::new("");
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.db");
    symlink(&scene.db, &link).unwrap();
    symlink(&scene.home, elsewhere.path().join("dir")).unwrap();
    // The first opens the database through a dangling link, which creates it.
    let names = [link.clone(), scene.db.clone(), elsewhere.path().join("dir/m.db")];
    let daemon = scene.daemon_on(&names[0]);
    for (number, name) in names.iter().cycle().take(9).enumerate() {
        let output =
            mainstay(elsewhere.path()).args(["send", "s", &format!("text {number}"), "--db"]).arg(name).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", said(&output).1);
        within(daemon.settled(String::from_utf8(output.stdout).unwrap().trim())).await;
    }
    daemon.kill();
    let left = fs::read_dir(elsewhere.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(left.len(), 2, "companions of the link: {left:?}");
    assert_eq!(stored_messages(&scene.open())["s"].len(), 9);
    for name in &names {
        let output = mainstay(elsewhere.path()).args(["runs", "--json", "--db"]).arg(name).output().unwrap();
        assert_eq!(said(&output).1.lines().count(), 9, "{}", said(&output).1);
    }
}

#[test]
fn a_file_with_several_names_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    assert!(mainstay(&home).args(["send", "s", "hi"]).output().unwrap().status.success());
    fs::hard_link(home.join("mainstay.db"), home.join("second.db")).unwrap();
    for name in ["mainstay.db", "second.db"] {
        refused(&home.join(name), "has 2 names (hard links)");
    }
    fs::remove_file(home.join("second.db")).unwrap();
    assert!(mainstay(&home).args(["runs"]).output().unwrap().status.success());
}

#[test]
fn a_backup_is_not_put_where_companions_lie() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    assert!(mainstay(&home).args(["send", "s", "hi"]).output().unwrap().status.success());
    fs::write(home.join("old.db-wal"), "of a database that was deleted").unwrap();
    fs::write(home.join("notes.txt"), "mine").unwrap();
    let before = listing(&home);
    for to in ["old.db", "mainstay.db-wal", "mainstay.db-journal", "mainstay.db", "notes.txt", "missing/copy.db"] {
        let (code, text) = said(&mainstay(&home).args(["backup", to]).output().unwrap());
        assert!(code == Some(1) && text.contains(to), "{to}: {text}");
        assert_eq!(listing(&home), before, "{to}");
    }
}

#[test]
fn any_name_of_a_directory_is_a_path_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("a?mode=memory&b#c%20 d");
    fs::create_dir(&home).unwrap();
    assert!(mainstay(&home).args(["send", "s", "hi"]).output().unwrap().status.success());
    // With a WAL, then without one.
    let reader = rusqlite::Connection::open(home.join("mainstay.db")).unwrap();
    reader.query_row("SELECT count(*) FROM runs", [], |_| Ok(())).unwrap();
    for _ in 0..2 {
        let (code, text) = said(&mainstay(&home).args(["runs", "--json"]).output().unwrap());
        assert_eq!((code, text.lines().count()), (Some(0), 1), "{text}");
        let _ = reader.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
    }
    drop(reader);
    let (code, text) = said(&mainstay(&home).args(["runs", "--json"]).output().unwrap());
    assert_eq!((code, text.lines().count()), (Some(0), 1), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_process_that_is_hidden_is_not_called_dead() {
    const OTHER: u32 = 64_327;
    let hide =
        "mount -t proc -o hidepid=2 none /proc && exec setpriv --reuid=64327 --regid=64327 --clear-groups \"$@\"";
    let hidden = |args: &[&str]| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", hide, "sh"]).args(args).stdin(std::process::Stdio::null());
        command.output().unwrap()
    };
    if as_user(OTHER, OTHER).is_none() || !hidden(&["true"]).status.success() {
        return skipped("this needs root, setpriv and a /proc that hides processes");
    }
    let scene = Scene::new("");
    let daemon = scene.daemon();
    within(daemon.settled(&daemon.count("s", "m").await.run())).await;
    for path in [scene.home.parent().unwrap(), &scene.home] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["m.db", "m.db-wal", "m.db-shm"] {
        fs::set_permissions(scene.home.join(name), Permissions::from_mode(0o644)).unwrap();
    }
    let db = scene.db.to_str().unwrap();
    let (_, text) = said(&hidden(&[env!("CARGO_BIN_EXE_mainstay"), "doctor", "--db", db]));
    assert!(text.contains("ok       workers") && !text.contains("is dead"), "{text}");
    daemon.stop();
}

#[test]
fn a_file_that_is_mounted_by_itself_is_refused() {
    let Some(namespace) = namespace() else { return skipped("no file may be mounted here") };
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    assert!(mainstay(&home).args(["send", "s", "hi"]).output().unwrap().status.success());
    fs::create_dir(home.join("data")).unwrap();
    fs::write(home.join("data/m.db"), "").unwrap();
    for command in ["runs", "serve", "doctor", "sweep"] {
        let mounted = format!("mount --bind mainstay.db data/m.db && exec \"$0\" {command} --db data/m.db");
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(namespace).args(["sh", "-c", &mounted, env!("CARGO_BIN_EXE_mainstay")]).current_dir(&home);
        let (code, text) = said(&unshare.output().unwrap());
        assert!(code == Some(1) && text.contains("is a mount point"), "{command}: {text}");
    }
    assert_eq!(fs::read_dir(home.join("data")).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_seen_is_not_called_absent() {
    const OTHER: u32 = 64_322;
    let Some(other) = as_user(OTHER, OTHER) else { return skipped("this needs root, setpriv and a reachable binary") };
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let (closed, open) = (dir.path().join("closed"), dir.path().join("open"));
    fs::create_dir(&closed).unwrap();
    fs::create_dir(&open).unwrap();
    chown(&open, Some(OTHER), Some(OTHER)).unwrap();
    assert!(mainstay(&closed).args(["send", "s", "hi"]).output().unwrap().status.success());
    fs::write(closed.join("tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(closed.join("tool"), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let hidden = closed.join("mainstay.db");
    for command in commands_that_read().iter().chain(&WRITING.map(<[&str]>::to_vec)) {
        let (code, text) = said(&other(&open, &[&command[..], &["--db", hidden.to_str().unwrap()]].concat()));
        assert!(code == Some(1) && text.contains("Permission denied"), "{command:?}: {text}");
        assert!(!text.contains("no database"), "{command:?}: {text}");
    }
    let config = closed.join("mainstay.toml");
    let (code, text) = said(&other(&open, &["runs", "--config", config.to_str().unwrap()]));
    assert!(code == Some(2) && text.contains("Permission denied"), "{text}");
    let (code, text) = said(&other(&open, &["send", "s", "--attach", hidden.to_str().unwrap(), "hi"]));
    assert!(code == Some(1) && text.contains("Permission denied"), "{text}");

    // A workspace, and a program, that the service may not read.
    let agent = |dir: &Path, program: &Path| {
        format!(
            "[agents.a]\ndriver = \"openclaw\"\ncommand = [{program:?}, \"{{message}}\"]\n\
             [workspaces.default]\nagent = \"a\"\ndir = {dir:?}\n"
        )
    };
    for config in [agent(&closed.join("work"), Path::new("sh")), agent(&open, &closed.join("tool"))] {
        fs::write(open.join("mainstay.toml"), config).unwrap();
        for command in [&["run", "hi"] as &[&str], &["agents"], &["doctor"]] {
            let (_, text) = said(&other(&open, command));
            assert!(
                text.contains("cannot be looked at") || text.contains("must not be executed"),
                "{command:?}: {text}"
            );
            assert!(
                !text.contains("is not there: create") && !text.contains("tool was not found"),
                "{command:?}: {text}"
            );
        }
    }
}

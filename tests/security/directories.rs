//! Files that another user put into a directory: a config that names programs, companion files of a database, links.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, mkfifoat};

use crate::scene::skipped;
use crate::user::{as_user, mainstay, said};

const OTHER: u32 = 64_330;

/// Gives a file to another user; false if only root could.
fn give_away(path: &Path) -> bool {
    chown(path, Some(OTHER), Some(OTHER)).is_ok()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A system user that is not root, with a group of its own.
fn some_user() -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    users.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        (uid != 0 && gid != 0).then_some((uid, gid))
    })
}

/// A directory with a config whose agent leaves a trace when its program is started.
fn with_config() -> (tempfile::TempDir, impl Fn() -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let (program, trace) = (dir.path().join("agent"), dir.path().join("started"));
    fs::write(&program, format!("#!/bin/sh\n: > {}\n", trace.display())).unwrap();
    set_mode(&program, 0o755);
    let agent = format!("driver = \"acp\"\ncommand = [{program:?}]");
    let config = format!("[agents.it]\n{agent}\n[workspaces.default]\nagent = \"it\"\n");
    fs::write(dir.path().join("mainstay.toml"), config).unwrap();
    set_mode(dir.path(), 0o755);
    (dir, move || trace.exists())
}

const STARTING: [&[&str]; 5] =
    [&["agents"], &["run", "hi"], &["doctor"], &["sweep"], &["serve", "--listen", "127.0.0.1:0"]];

/// No command reads the config of this directory unless it is named; each error says how to name it.
fn refused_until_named(dir: &Path, why: &str, is_started: impl Fn() -> bool) {
    for command in STARTING {
        let (code, text) = said(&mainstay(dir).args(command).output().unwrap());
        assert_eq!(code, Some(2), "{command:?}: {text}");
        assert!(text.contains(why) && text.contains("--config ./mainstay.toml"), "{command:?}: {text}");
    }
    assert!(!is_started());
    assert!(!dir.join("mainstay.db").exists());
    let (code, text) = said(&mainstay(dir).args(["agents", "--config", "./mainstay.toml"]).output().unwrap());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("another user could change the config"), "{text}");
    assert!(is_started());
}

#[test]
fn config_that_every_user_may_replace_is_refused() {
    let (dir, is_started) = with_config();
    set_mode(dir.path(), 0o777);
    refused_until_named(dir.path(), "every user may write to", is_started);
    let (dir, is_started) = with_config();
    set_mode(&dir.path().join("mainstay.toml"), 0o666);
    refused_until_named(dir.path(), "mainstay.toml (mode 666)", is_started);
    // As in /tmp, where other users can add files and replace none.
    let (dir, is_started) = with_config();
    set_mode(dir.path(), 0o1777);
    let (code, text) = said(&mainstay(dir.path()).arg("agents").output().unwrap());
    assert_eq!((code, is_started()), (Some(0), true), "{text}");
}

#[test]
fn config_of_another_user_is_refused() {
    let (dir, is_started) = with_config();
    if !give_away(&dir.path().join("mainstay.toml")) {
        return skipped("this needs root");
    }
    refused_until_named(dir.path(), "belongs to uid 64330", is_started);
    let (dir, is_started) = with_config();
    let (other, _) = with_config();
    fs::remove_file(dir.path().join("mainstay.toml")).unwrap();
    symlink(other.path().join("mainstay.toml"), dir.path().join("mainstay.toml")).unwrap();
    give_away(other.path());
    for command in STARTING {
        let (code, text) = said(&mainstay(dir.path()).args(command).output().unwrap());
        assert!(code == Some(2) && text.contains("belongs to uid 64330"), "{command:?}: {text}");
    }
    assert!(!is_started());
}

/// No command that changes something does so until the database is named.
fn refuses_what_writes(dir: &Path) {
    let id = "0192f0c1-2345-7000-8000-0123456789ab";
    let commands: [&[&str]; 10] = [
        &["run", "--session", "s", "more"],
        &["serve", "--listen", "127.0.0.1:0"],
        &["sweep"],
        &["send", "s", "more"],
        &["cancel", "s"],
        &["close", "s"],
        &["session", "t", "--new"],
        &["backends", "stop", id],
        &["permissions", "--answer", id, "allow"],
        &["token", "rotate"],
    ];
    for command in commands {
        let (code, text) = said(&mainstay(dir).args(command).output().unwrap());
        assert!(code == Some(2) && text.contains("--db ./mainstay.db"), "{command:?}: {text}");
    }
}

#[test]
fn queue_of_another_user_is_not_executed_unless_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(mainstay(dir).args(["send", "s", "hi"]).output().unwrap().status.success());
    if !give_away(&dir.join("mainstay.db")) {
        return skipped("this needs root");
    }
    refuses_what_writes(dir);
    assert!(mainstay(dir).args(["runs"]).output().unwrap().status.success());
    let named = ["run", "--session", "s", "more", "--db", "./mainstay.db"];
    let (code, text) = said(&mainstay(dir).args(named).output().unwrap());
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn database_is_made_only_where_it_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    set_mode(dir, 0o777);
    let run = |named: &[&str]| said(&mainstay(dir).args(["run", "hi"]).args(named).output().unwrap());
    let (code, text) = run(&[]);
    assert!(code == Some(2) && text.contains("every user may write to"), "{text}");
    assert!(text.contains("would be made here") && text.contains("--db ./mainstay.db"), "{text}");
    for command in [&["send", "s", "hi"] as &[&str], &["session", "s", "--new"]] {
        let (code, text) = said(&mainstay(dir).args(command).output().unwrap());
        assert!(code == Some(2) && text.contains("would be made here"), "{command:?}: {text}");
    }
    assert!(!dir.join("mainstay.db").exists());
    // With the name by which it would have been found.
    for _ in 0..2 {
        let (code, text) = run(&["--db", "mainstay.db"]);
        assert_eq!(code, Some(0), "{text}");
    }
    let (code, text) = said(&mainstay(dir).args(["run", "hi"]).env("MAINSTAY_DB", "mainstay.db").output().unwrap());
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(run(&[]).0, Some(2));
    refuses_what_writes(dir);
}

#[test]
fn companions_of_a_member_of_the_group_are_taken() {
    let Some((uid, gid)) = some_user() else { return skipped("this needs a user beside root in /etc/passwd") };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Named, because a group that may write to it may also replace what is queued there.
    let send = || said(&mainstay(dir).args(["send", "s", "hi", "--db", "./mainstay.db"]).output().unwrap());
    assert_eq!(send().0, Some(0));
    let (database, wal) = (dir.join("mainstay.db"), dir.join("mainstay.db-wal"));
    // As a member leaves it in a directory without the set-group-ID bit: with another group.
    let left = |owner: u32| {
        fs::write(&wal, "").unwrap();
        chown(&wal, Some(owner), Some(OTHER)).is_ok()
    };
    if chown(&database, None, Some(gid)).is_err() || !left(uid) {
        return skipped("this needs root");
    }
    set_mode(&database, 0o640);
    let (code, text) = send();
    assert!(code == Some(1) && text.contains(&format!("mainstay.db-wal belongs to uid {uid}, so")), "{text}");
    set_mode(&database, 0o660);
    left(OTHER);
    let (code, text) = send();
    assert!(code == Some(1) && text.contains(&format!("`chgrp {gid}` the file")), "{text}");
    left(uid);
    let (code, text) = send();
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn directory_of_agents_is_closed_to_others_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let agents = dir.join("mainstay.db-agents");
    let send = || said(&mainstay(dir).args(["send", "s", "hi"]).output().unwrap());
    // Also if the directory existed before.
    fs::create_dir(&agents).unwrap();
    for mode in [0o777, 0o755, 0o1777] {
        set_mode(&agents, mode);
        assert_eq!(send().0, Some(0));
        assert_eq!(fs::metadata(&agents).unwrap().mode() & 0o7777, 0o700);
    }
    // Through a link the daemon would work in whatever directory it leads to.
    fs::remove_dir(&agents).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    set_mode(elsewhere.path(), 0o755);
    symlink(elsewhere.path(), &agents).unwrap();
    let (code, text) = send();
    assert!(code == Some(1) && text.contains("mainstay.db-agents is no directory"), "{text}");
    assert_eq!(fs::metadata(elsewhere.path()).unwrap().mode() & 0o777, 0o755);
    fs::remove_file(&agents).unwrap();
    fs::create_dir(&agents).unwrap();
    if !give_away(&agents) {
        return skipped("this needs root");
    }
    let (code, text) = send();
    assert!(code == Some(1) && text.contains("mainstay.db-agents belongs to uid 64330"), "{text}");
}

#[test]
fn workspace_that_cannot_be_written_is_named() {
    let (dir, _) = with_config();
    let Some(other) = as_user(OTHER, OTHER) else { return skipped("this needs root, setpriv and a reachable binary") };
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    give_away(&home);
    let config = format!("[workspaces.default]\ndir = {closed:?}\n");
    fs::write(dir.path().join("mainstay.toml"), config).unwrap();
    let run = |args: &[&str]| said(&other(&home, &[args, &["--config", "../mainstay.toml"]].concat()));
    assert_eq!(run(&["send", "s", "hi"]).0, Some(0));
    let (code, text) = run(&["doctor"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("warning  workspaces") && text.contains("closed cannot be written (Permission denied"),
        "{text}"
    );
}

#[test]
fn companions_of_another_user_are_refused() {
    for name in ["mainstay.db-wal", "mainstay.db-shm", "mainstay.db-journal", "mainstay.db-lock"] {
        for before in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            let companion = dir.join(name);
            if before {
                assert!(mainstay(dir).args(["send", "s", "hi"]).output().unwrap().status.success());
                let _ = fs::remove_file(&companion);
            }
            let refused = |why: &str| {
                let (code, text) = said(&mainstay(dir).args(["send", "s", "hi"]).output().unwrap());
                assert!(code == Some(1) && text.contains(&format!("{name} {why}")), "{name}: {text}");
            };
            mkfifoat(CWD, &companion, Mode::from_raw_mode(0o600)).unwrap();
            refused("is a named pipe");
            fs::remove_file(&companion).unwrap();
            symlink("/etc/passwd", &companion).unwrap();
            refused("is a symbolic link");
            fs::remove_file(&companion).unwrap();
            fs::write(&companion, "").unwrap();
            if !give_away(&companion) {
                return skipped("this needs root");
            }
            refused("belongs to uid 64330");
        }
    }
}

#[test]
fn pipes_and_devices_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    mkfifoat(CWD, dir.join("pipe"), Mode::from_raw_mode(0o600)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    for (what, kind) in
        [("pipe", "a named pipe"), ("socket", "a socket"), ("/dev/zero", "a device"), (".", "a directory")]
    {
        for (code, command) in [
            (2, vec!["runs", "--config", what]),
            (1, vec!["runs", "--db", what]),
            (1, vec!["send", "s", "hi", "--db", what]),
            (1, vec!["send", "s", "hi", "--attach", what]),
            (1, vec!["backup", what]),
        ] {
            // An open that waits for a writer would not end.
            let mut bounded = Command::new("timeout");
            bounded.arg("60").arg(env!("CARGO_BIN_EXE_mainstay")).args(&command).current_dir(dir);
            let (found, text) = said(&bounded.output().unwrap());
            assert_eq!(found, Some(code), "{command:?}: {text}");
            assert!(text.contains(kind) || command[0] == "backup", "{command:?}: {text}");
        }
    }
    fs::rename(dir.join("pipe"), dir.join("mainstay.toml")).unwrap();
    let mut bounded = Command::new("timeout");
    let (code, text) =
        said(&bounded.arg("60").arg(env!("CARGO_BIN_EXE_mainstay")).arg("agents").current_dir(dir).output().unwrap());
    assert!(code == Some(2) && text.contains("mainstay.toml: it is a named pipe"), "{text}");
}

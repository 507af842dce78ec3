//! A backup that is killed: the doctor names its leftovers and the sweep removes them, whatever their directory.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::user::{mainstay, said};

/// A database that takes a while to copy.
fn large_database(dir: &Path) {
    assert!(mainstay(dir).args(["send", "s", "hi"]).output().unwrap().status.success());
    let conn = rusqlite::Connection::open(dir.join("mainstay.db")).unwrap();
    let fill = "CREATE TABLE filler (bytes);
                WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 400)
                INSERT INTO filler SELECT randomblob(100000) FROM n";
    conn.execute_batch(fill).unwrap();
}

/// The unfinished copies in a directory.
fn copies(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "part")).collect()
}

/// A backup that is stopped in the middle of its copy.
fn stopped_backup(dir: &Path, to: &Path) -> Child {
    let mut backup = mainstay(dir).arg("backup").arg(to).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_child(&backup);
    let deadline = Instant::now() + Duration::from_secs(60);
    while copies(to.parent().unwrap()).is_empty() {
        assert!(Instant::now() < deadline && backup.try_wait().unwrap().is_none(), "it was never seen at work");
    }
    kill_process(pid, Signal::STOP).unwrap();
    waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
    assert!(!copies(to.parent().unwrap()).is_empty(), "it was too quick");
    backup
}

fn doctor(dir: &Path) -> String {
    said(&mainstay(dir).args(["doctor", "--quick"]).output().unwrap()).1
}

fn sweep(dir: &Path) -> serde_json::Value {
    let output = mainstay(dir).args(["sweep", "--json"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output).1))
}

#[test]
fn copy_of_a_killed_backup_is_named_and_swept_away() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, to) = (dir.path(), target.path().join("copy.db"));
    large_database(dir);
    let mut backup = stopped_backup(dir, &to);
    // The backup may continue.
    assert_eq!(sweep(dir)["copies_removed"], 0);
    let copy = copies(target.path()).pop().unwrap();
    assert!(!doctor(dir).contains(copy.to_str().unwrap()));
    backup.kill().unwrap();
    backup.wait().unwrap();
    assert!(copy.exists());
    let found = doctor(dir);
    let line = format!("{}: a backup that was killed left it unfinished", copy.display());
    assert!(found.contains(&line) && found.contains("mainstay sweep"), "{found}");
    assert_eq!(sweep(dir)["copies_removed"], 1);
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    assert!(!doctor(dir).contains("a backup that was killed"));
    assert_eq!(fs::read_dir(dir.join("mainstay.db-agents")).unwrap().count(), 0, "its note");
}

#[test]
fn directory_that_is_another_one_by_now_is_left_alone() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, home) = (dir.path(), target.path().join("home"));
    fs::create_dir(&home).unwrap();
    large_database(dir);
    let mut backup = stopped_backup(dir, &home.join("copy.db"));
    backup.kill().unwrap();
    backup.wait().unwrap();
    let copy = copies(&home).pop().unwrap();
    // As seen by a daemon with another file system at the same path.
    fs::rename(&home, target.path().join("away")).unwrap();
    fs::create_dir(&home).unwrap();
    assert_eq!(sweep(dir)["copies_removed"], 0);
    assert!(doctor(dir).contains(copy.to_str().unwrap()));
    fs::remove_dir(&home).unwrap();
    fs::rename(target.path().join("away"), &home).unwrap();
    assert_eq!(sweep(dir)["copies_removed"], 1);
    assert!(!copy.exists());
}

#[test]
fn backup_leaves_no_note_of_a_copy_that_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(mainstay(dir).args(["send", "s", "hi"]).output().unwrap().status.success());
    let mut backup: Command = mainstay(dir);
    let (code, text) = said(&backup.args(["backup", "copy.db"]).output().unwrap());
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(fs::read_dir(dir.join("mainstay.db-agents")).unwrap().count(), 0);
    assert!(copies(dir).is_empty());
}

/// Notes a file in a directory as the unfinished copy with an id.
fn note(database_dir: &Path, id: &str, copy: &Path) -> PathBuf {
    let dir = fs::metadata(copy.parent().unwrap()).unwrap();
    let content = serde_json::json!({ "copy": copy, "dir": [dir.dev(), dir.ino()] });
    let path = database_dir.join("mainstay.db-agents").join(format!("backup-{id}"));
    fs::write(&path, content.to_string()).unwrap();
    path
}

#[test]
fn sweep_removes_no_file_that_is_no_copy_of_the_note() {
    const ID: &str = "0123456789abcdef0123456789abcdef";
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, home) = (dir.path(), home.path());
    assert!(mainstay(dir).args(["send", "s", "hi"]).output().unwrap().status.success());
    let file = |name: &str, text: &str| {
        let path = home.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let other_name = file("x.iso.part", "SQLite format 3\0");
    note(dir, "iso", &other_name);
    let other_content = file(&format!("x.{ID}.part"), "a download");
    note(dir, ID, &other_content);
    assert_eq!(sweep(dir)["copies_removed"], 0);
    assert!(other_name.exists() && other_content.exists());
    // The note of another user who may write beside the database.
    let (copy, journal) = (file(&format!("y.{ID}.part"), "SQLite format 3\0"), format!("y.{ID}.part-journal"));
    let journal = file(&journal, "");
    let noted = note(dir, ID, &copy);
    if chown(&noted, Some(64_330), None).is_ok() {
        assert_eq!(sweep(dir)["copies_removed"], 0);
        assert!(copy.exists() && journal.exists());
        note(dir, ID, &copy);
    }
    assert_eq!(sweep(dir)["copies_removed"], 1);
    assert!(!copy.exists() && !journal.exists());
}

#[test]
fn note_without_a_copy_is_no_finding() {
    const ID: &str = "0123456789abcdef0123456789abcdef";
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    assert!(mainstay(dir).args(["send", "s", "hi"]).output().unwrap().status.success());
    // As after a backup that was killed once its copy had its final name.
    let noted = note(dir, ID, &home.path().join(format!("copy.db.{ID}.part")));
    assert!(!doctor(dir).contains("a backup that was killed"));
    assert_eq!(sweep(dir)["copies_removed"], 0);
    assert!(!noted.exists());
}

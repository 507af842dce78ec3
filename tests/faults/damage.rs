//! Files that are damaged when they are opened: a clear error, or their earlier content, never a panic and never a new database
//! in place of the old one.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::replay::Draw;
use crate::scene::{Count, Scene, check_file, within};

/// A database with a WAL that was not checkpointed, as a killed daemon leaves it.
async fn killed() -> Scene {
    let scene = Scene::with_agent("cat >/dev/null", "");
    let daemon = scene.daemon();
    for number in 0..12 {
        daemon.count("s", &format!("m{number}")).await.run();
    }
    within(daemon.settled(&daemon.count("t", "m").await.run())).await;
    daemon.kill();
    assert!(scene.wal_bytes() > 100_000, "the WAL is part of the matter");
    scene
}

/// The output of a command that reads the whole file.
enum Said {
    /// The ids of its runs.
    Runs(BTreeSet<String>),
    Error(String),
}

fn mainstay(db: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    let asked = command.args(args).arg("--db").arg(db).current_dir(db.parent().unwrap());
    asked.stdin(Stdio::null()).output().unwrap()
}

fn runs(db: &Path) -> Said {
    let output = mainstay(db, &["runs", "--json", "--limit", "500"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    match output.status.code() {
        Some(0) => {
            let id = |line: &str| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned()
            };
            Said::Runs(out.lines().map(id).collect())
        }
        Some(1) => {
            let said: serde_json::Value = serde_json::from_str(&err).unwrap_or_else(|error| panic!("{error}: {err}"));
            Said::Error(said["error"]["message"].as_str().unwrap().to_owned())
        }
        _ => panic!("{:?}: {err}", output.status),
    }
}

/// A copy of the files of a scene, to be damaged.
fn copy(scene: &Scene) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["m.db", "m.db-wal", "m.db-shm"] {
        std::fs::copy(scene.home.join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn damage(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(file).unwrap();
    change(&mut bytes);
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_damaged_database_is_a_clear_error_or_as_it_was() {
    let scene = killed().await;
    // Checkpointed: the WAL would repair the database.
    let whole = copy(&scene);
    let Said::Runs(all) = runs(&whole.path().join("m.db")) else { panic!("the undamaged file cannot be read") };
    assert_eq!(all.len(), 13);
    assert!(mainstay(&whole.path().join("m.db"), &["sweep"]).status.success());
    let written_back = std::fs::read(whole.path().join("m.db")).unwrap();
    let mut draw = Draw(1);
    let mut below = |end: usize| usize::try_from(draw.below(end as u64)).unwrap();
    let bytes = written_back.len();
    let mut refused = 0;
    // Every part of the header, then anywhere, then whole sectors, then a truncated end.
    let flips = (0..24).map(|number| (number * 4, 4));
    let anywhere: Vec<_> = (0..12).map(|number| (below(bytes - 512), if number % 2 == 0 { 1 } else { 512 })).collect();
    for (at, length) in flips.chain(anywhere) {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("m.db");
        let mut damaged = written_back.clone();
        damaged[at..at + length].iter_mut().for_each(|byte| *byte ^= 0x5A);
        std::fs::write(&db, &damaged).unwrap();
        match runs(&db) {
            Said::Runs(found) => assert!(found.is_subset(&all) && !found.is_empty(), "{at}: {found:?}"),
            Said::Error(error) => {
                assert!(error.starts_with("failed to ") && error.contains("m.db"), "{at}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 5, "only {refused} were noticed");
    for length in [20, 500, 4096, bytes / 2] {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("m.db");
        std::fs::write(&db, &written_back[..length]).unwrap();
        let Said::Error(error) = runs(&db) else { panic!("cut to {length} bytes, and nobody noticed") };
        assert!(error.contains("damaged") || error.contains("not a mainstay database"), "{length}: {error}");
    }
}

#[tokio::test]
async fn a_damaged_wal_gives_what_was_committed_before_the_damage() {
    let scene = killed().await;
    let whole = copy(&scene);
    let Said::Runs(all) = runs(&whole.path().join("m.db")) else { panic!("the undamaged file cannot be read") };
    assert_eq!(all.len(), 13);
    let wal = usize::try_from(scene.wal_bytes()).unwrap();
    let mut counts = vec![];
    type Change = Box<dyn FnOnce(&mut Vec<u8>)>;
    let changes: Vec<Change> = vec![
        Box::new(move |wal_bytes| wal_bytes.truncate(wal / 2)),
        Box::new(move |wal_bytes| wal_bytes.truncate(wal - 1)),
        Box::new(move |wal_bytes| wal_bytes[wal / 2] ^= 0xFF),
        Box::new(move |wal_bytes| wal_bytes.extend(vec![0xA5; 10_000])),
        Box::new(move |wal_bytes| wal_bytes.extend(vec![0; 10_000])),
    ];
    for change in changes {
        let dir = copy(&scene);
        let db = dir.path().join("m.db");
        damage(&dir.path().join("m.db-wal"), change);
        match runs(&db) {
            Said::Runs(found) => {
                assert!(found.is_subset(&all), "{found:?}");
                check_file(&rusqlite::Connection::open(&db).unwrap()).unwrap();
                counts.push(found.len());
            }
            Said::Error(error) => panic!("{error}"),
        }
    }
    assert!(counts[0] < 13 && counts[2] < 13, "the damage was in a part that is not needed: {counts:?}");
    assert_eq!(counts[3..], [13, 13], "rubbish behind the end");
}

#[tokio::test]
async fn a_wal_without_its_database_is_not_taken_for_a_new_one() {
    let scene = killed().await;
    let whole = copy(&scene);
    let Said::Runs(all) = runs(&whole.path().join("m.db")) else { panic!("the undamaged file cannot be read") };
    for change in [|bytes: &mut Vec<u8>| bytes.clear(), |bytes: &mut Vec<u8>| bytes.fill(0)] {
        let dir = copy(&scene);
        damage(&dir.path().join("m.db"), change);
        let before = std::fs::read(dir.path().join("m.db-wal")).unwrap();
        match runs(&dir.path().join("m.db")) {
            Said::Error(error) => {
                assert!(error.contains("is damaged"), "{error}");
                assert_eq!(std::fs::read(dir.path().join("m.db-wal")).unwrap(), before, "the WAL is what is left");
            }
            // The WAL has all of it.
            Said::Runs(found) => assert_eq!(found, all),
        }
    }
}

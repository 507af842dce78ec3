//! A short torture: the real binary under faults from a fixed seed. `.ci/run` has a long one.

use std::process::{Command, Stdio};

use serde_json::Value;

const SEED: &str = "20261121";

fn torture(dir: &std::path::Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(["torture", "--seed", SEED, "--json", "--dir"]).arg(dir).args(more);
    command
}

#[test]
fn nothing_is_lost_or_left_behind_under_random_kills() {
    let dir = tempfile::tempdir().unwrap();
    let output = torture(dir.path(), &["--kills", "25"]).output().unwrap();
    let (report, progress) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        // Everything that shows what went wrong is kept there.
        panic!("seed {SEED}, kept in {}: {report}\n{progress}", dir.keep().display());
    }
    println!("seed {SEED}: {report}");
    let report: Value = serde_json::from_str(&report).unwrap();
    // A torture without faults and messages would pass too.
    for key in ["engine_kills", "agent_kills", "messages_acknowledged", "events_read"] {
        assert!(report[key].as_u64() > Some(0), "{key}: {report}");
    }
    assert!(report["runs"]["completed"].as_u64() > Some(0), "{report}");
    assert_eq!(report["violations_total"], 0);
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "the directory is removed when all is well");
}

#[test]
fn an_interrupted_torture_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut torture = torture(dir.path(), &["--for", "1h"]);
    let mut child = torture.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // The second line is about progress: by then engines and agents are at work.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    assert!(lines.nth(1).unwrap().unwrap().contains("kills"));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    // Read to the end, so that it does not block on the pipe.
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mark = format!("TORTURE_DIR={}", dir.path().canonicalize().unwrap().display());
    let marked = |environ: Vec<u8>| environ.split(|byte| *byte == 0).any(|entry| entry.starts_with(mark.as_bytes()));
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let left: Vec<_> = processes
        .filter(|process| std::fs::read(process.path().join("environ")).is_ok_and(marked))
        .map(|process| process.file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}

#[test]
fn torture_without_its_program_says_what_to_install() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mainstay = dir.path().join("mainstay");
    std::fs::hard_link(env!("CARGO_BIN_EXE_mainstay"), &mainstay).unwrap();
    let output = Command::new(mainstay).args(["torture", "--kills", "1"]).env("PATH", dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let place = format!("mainstay-torture is neither in {} nor on PATH", dir.path().display());
    assert!(said.contains(&place) && said.contains("cargo install"), "{said}");
}

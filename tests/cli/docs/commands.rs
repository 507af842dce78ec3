//! The commands of the pages, run page by page in one shell each, in an empty directory, as a reader would.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use super::pages::{RUN, blocks, pages};

const MAINSTAY: &str = env!("CARGO_BIN_EXE_mainstay");

/// The script around the commands. Nothing is installed or built; a reader waits for the address before the next command.
const SHELL: &str = r#"
set -eu
cargo() { [ "$1" = install ] || { echo "cargo $1 is not known here" >&2; exit 1; }; }
ready() { until curl -sf "$address/readyz" >/dev/null; do sleep 0.05; done; }
daemon=
trap 'kill -9 $daemon 2>/dev/null || true' EXIT
"#;

/// What a page expects to exist.
fn before(page: &str) -> &'static str {
    match page {
        "docs/howto/backup.md" | "docs/operations.md" => "mainstay run hi\n",
        _ => "",
    }
}

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the output has these lines, in this order.
fn has(output: &str, expected: &str) -> Result<(), String> {
    let output = squeezed(output);
    let mut rest = output.as_str();
    for line in expected.lines() {
        for piece in line.split('…').map(squeezed).filter(|piece| !piece.is_empty()) {
            let (_, behind) = rest.split_once(&piece).ok_or_else(|| format!("{piece:?} is missing"))?;
            rest = behind;
        }
    }
    Ok(())
}

fn run_page(name: &str) {
    for program in ["bash", "curl", "sqlite3", "python3"] {
        if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
            // Not `eprintln!`, whose output the test harness captures.
            let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: {program} is not installed ***");
            return;
        }
    }
    let (_, page) = pages().into_iter().find(|(page, _)| page == name).unwrap();
    let run: Vec<_> = blocks(&page).into_iter().filter(|block| block.not_run.is_none()).collect();
    let run: Vec<_> = run.iter().filter(|block| ["sh", "text"].contains(&block.language.as_str())).collect();
    let dir = tempfile::tempdir().unwrap();
    for name in ["bin", "work", "backups"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    symlink(MAINSTAY, dir.path().join("bin/mainstay")).unwrap();
    let path = std::env::split_paths(&std::env::var_os("PATH").unwrap()).collect::<Vec<_>>();
    let path = std::env::join_paths(std::iter::once(dir.path().join("bin")).chain(path)).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();

    let commands: String = run
        .iter()
        .filter(|block| block.language == "sh")
        .map(|block| format!("echo '== next'\n{}", block.text))
        .collect();
    assert!(!commands.is_empty(), "{name} has no commands");
    let commands = commands
        .replace("127.0.0.1:7717", &address)
        .replace("daemon=$!", "daemon=$!; ready")
        .replace("/backups", dir.path().join("backups").to_str().unwrap())
        .replace("2026-11-21", "$(date +%F)");
    let mut bash = Command::new("timeout");
    bash.args(["300", "bash", "-c", &format!("{SHELL}{}{commands}", before(name))]);
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MAINSTAY_")) {
        bash.env_remove(variable);
    }
    bash.env("PATH", path).env("address", &address).env("MAINSTAY_LISTEN", &address);
    let output = bash.current_dir(dir.path().join("work")).stdin(Stdio::null()).output().unwrap();
    let (said, logged) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {}\n{said}\n{logged}", output.status);
    let mut outputs = said.split("== next\n").skip(1);
    let mut newest = "";
    for block in run {
        if block.language == "sh" {
            newest = outputs.next().unwrap();
        } else if let Err(missing) = has(newest, &block.text) {
            panic!("{name}:{}: {missing} in: {newest}\n{logged}", block.line);
        }
    }
}

#[test]
fn commands_of_the_tutorial_run_as_they_stand() {
    run_page("docs/tutorial.md");
}

#[test]
fn commands_of_the_other_pages_run_as_they_stand() {
    for page in RUN.iter().filter(|page| **page != "docs/tutorial.md") {
        run_page(page);
    }
}

#[test]
fn output_is_compared_line_by_line() {
    assert_eq!(has("a  b\nc 12 d\ne", "a b\nc … d"), Ok(()));
    assert!(has("a b\nc", "c\na").is_err());
}

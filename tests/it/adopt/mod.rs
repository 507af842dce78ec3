//! Agents outlive their engine: whatever happens to daemons, a reader gets exactly the agent's output.

mod daemons;
mod outcomes;
mod sweeps;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use mainstay::engine::Follower;
use mainstay::id::RunId;
use mainstay::run::{Run, Status};
use serde_json::Value;

use crate::scene::{Camp, Daemon, NOTHING, marked, settled, until, within};

/// Says numbers until the file `stop` exists, keeps its own record of them, and counts its starts.
fn counting() -> String {
    let delta = r#"{"event":"agent","stream":"assistant","data":{"delta":"$i "}}"#;
    format!(
        "echo $$ >> started; i=0; while [ ! -e stop ]; do i=$((i+1)); printf '%s ' $i >> record; echo \"{}\"; sleep 0.01; done",
        delta.replace('"', "\\\"")
    )
}

const QUICK: &str = "[engine]\nlease = \"1s\"\nsweep_interval = \"1s\"";

/// A reader that keeps what it got, across all its connections.
struct Reader {
    follower: Follower,
    seqs: Vec<i64>,
    text: String,
}

impl Reader {
    async fn of(camp: &Camp, run: RunId) -> Self {
        Self { follower: camp.watcher.follow_run(run, 0).await.unwrap(), seqs: Vec::new(), text: String::new() }
    }

    /// Reads until this many more bytes of text have come.
    async fn grow(&mut self, bytes: usize) {
        let wanted = self.text.len() + bytes;
        while self.text.len() < wanted {
            assert!(self.read().await, "the run ended early: {}", self.text);
        }
    }

    async fn read(&mut self) -> bool {
        let Some(events) = within(self.follower.next_events()).await.unwrap() else { return false };
        for event in events {
            self.seqs.extend(event.seq);
            let chunk: Value = serde_json::from_str(&event.event).unwrap();
            self.text += chunk["delta"].as_str().unwrap_or_default();
        }
        true
    }

    /// Reads to the end of the run, and compares with the agent's own record.
    async fn end(mut self, camp: &Camp) {
        while self.read().await {}
        assert_eq!(self.text, std::fs::read_to_string(camp.dir.path().join("record")).unwrap());
        assert_eq!(self.seqs, (1..=i64::try_from(self.seqs.len()).unwrap()).collect::<Vec<_>>());
    }
}

/// A daemon with a run that has said this much so far, and a reader of the run.
async fn speaking(config: &str, bytes: usize) -> (Camp, Daemon, RunId, Reader) {
    let camp = Camp::new(&[("agent", &counting())], config).await;
    let daemon = camp.daemon();
    let run = camp.send("agent", "s", "hi").await.id;
    let mut reader = Reader::of(&camp, run).await;
    reader.grow(bytes).await;
    (camp, daemon, run, reader)
}

/// Lets the agent finish and checks that it was started once, that it ended well, and that nothing is left.
async fn ends_well(camp: &Camp, run: RunId) -> Run {
    std::fs::write(camp.dir.path().join("stop"), "").unwrap();
    let run = settled(&camp.watcher, run).await;
    assert_eq!((run.status, run.exit_code, run.attempts), (Status::Completed, Some(0), 1), "{run:?}");
    let started = std::fs::read_to_string(camp.dir.path().join("started")).unwrap();
    assert_eq!(started.lines().count(), 1, "one agent");
    leaves_nothing(camp, run.id).await;
    run
}

async fn leaves_nothing(camp: &Camp, run: RunId) {
    assert_eq!(marked(run), NOTHING);
    until(|| homes(camp).is_empty()).await;
}

fn homes(camp: &Camp) -> Vec<PathBuf> {
    let mut name = camp.db.clone().into_os_string();
    name.push("-agents");
    std::fs::read_dir(name).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The shim of the only run's agent.
fn host_of(run: RunId) -> i32 {
    let agent = marked(run)[0];
    let stat = std::fs::read_to_string(format!("/proc/{agent}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn kill(pid: i32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

fn mainstay(camp: &Camp, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(arguments).arg("--db").arg(&camp.db).arg("--config").arg(&camp.config);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

//! Agents outlive their engine: whatever happens to daemons, what a reader gets is what the agent said.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mainstay::engine::{Follower, MessageCursor, RunFilter};
use mainstay::failure::ErrorClass;
use mainstay::id::{RunId, SessionId};
use mainstay::run::{Run, Status};
use serde_json::Value;

use crate::scene::{Camp, Daemon, NOTHING, marked, says, settled, story, until, within};

/// Says numbers until the file `stop` is there, keeps its own record of them, and tells how often it was started.
fn counting() -> String {
    let delta = r#"{"event":"agent","stream":"assistant","data":{"delta":"$i "}}"#;
    format!(
        "echo $$ >> started; i=0; while [ ! -e stop ]; do i=$((i+1)); printf '%s ' $i >> record; echo \"{}\"; sleep 0.01; done",
        delta.replace('"', "\\\"")
    )
}

const QUICK: &str = "[engine]\nlease = \"1s\"\nsweep_interval = \"1s\"";

/// A reader who keeps what it got, whatever it is connected to.
struct Reader {
    follower: Follower,
    seqs: Vec<i64>,
    text: String,
}

impl Reader {
    async fn of(camp: &Camp, run: RunId) -> Self {
        Self { follower: camp.watcher.follow_run(run, 0).await.unwrap(), seqs: Vec::new(), text: String::new() }
    }

    /// Reads until there are so many more bytes of text.
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

/// A daemon in the midst of a run that has said so much, with a reader of it.
async fn speaking(config: &str, bytes: usize) -> (Camp, Daemon, RunId, Reader) {
    let camp = Camp::new(&[("agent", &counting())], config).await;
    let daemon = camp.daemon();
    let run = camp.send("agent", "s", "hi").await.id;
    let mut reader = Reader::of(&camp, run).await;
    reader.grow(bytes).await;
    (camp, daemon, run, reader)
}

/// Lets the agent end and checks that there was one, that it came to a good end, and that nothing is left.
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

/// The process that holds the agent of the only run.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_again_and_again_is_nothing_but_a_pause() {
    let camp = Camp::new(&[("agent", &counting())], "").await;
    let mut daemon = camp.daemon();
    let run = camp.send("agent", "s", "hi").await.id;
    let mut reader = Reader::of(&camp, run).await;
    for _ in 0..3 {
        reader.grow(100).await;
        daemon.kill();
        daemon = camp.daemon();
    }
    reader.grow(100).await;
    let next = camp.send("agent", "s", "next").await.id;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    assert_eq!(settled(&camp.watcher, next).await.status, Status::Failed, "the next one starts, and says nothing");
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_one_of_three_daemons_is_killed_another_goes_on() {
    let camp = Camp::new(&[("agent", &counting())], "").await;
    let mut daemons = vec![camp.daemon(), camp.daemon(), camp.daemon()];
    let run = camp.send("agent", "s", "hi").await.id;
    let mut reader = Reader::of(&camp, run).await;
    for _ in 0..2 {
        reader.grow(100).await;
        let worker = rusqlite::Connection::open(&camp.db).unwrap().query_row(
            "SELECT w.pid FROM runs r JOIN workers w ON w.key = r.lease_worker",
            [],
            |row| row.get::<_, u32>(0),
        );
        let worker = worker.unwrap();
        let at = daemons.iter().position(|daemon| daemon.pid() == worker).unwrap();
        daemons.remove(at).kill();
    }
    reader.grow(100).await;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_stopped_past_its_lease_writes_nothing_more_and_leaves_the_agent_alone() {
    let camp = Camp::new(&[("agent", &counting())], QUICK).await;
    let paused = camp.daemon();
    let run = camp.send("agent", "s", "hi").await.id;
    let mut reader = Reader::of(&camp, run).await;
    reader.grow(100).await;
    camp.pause(&paused);
    let other = camp.daemon();
    reader.grow(100).await;
    paused.signal("CONT");
    until(|| camp.log().contains("lease lost")).await;
    reader.grow(100).await;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    assert!(paused.stop().success());
    assert!(other.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_hands_over_leaves_the_agent_to_the_next() {
    let (camp, daemon, run, mut reader) = speaking("", 100).await;
    daemon.signal("USR2");
    assert!(daemon.wait().success());
    assert_ne!(marked(run), NOTHING);
    let daemon = camp.daemon();
    reader.grow(100).await;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_leaves_what_is_running_to_another_that_is_there() {
    let camp = Camp::new(&[("agent", &counting())], "[engine]\nshutdown_grace = \"0s\"").await;
    let old = camp.daemon();
    let run = camp.send("agent", "s", "hi").await.id;
    let mut reader = Reader::of(&camp, run).await;
    reader.grow(100).await;
    let new = camp.daemon();
    assert!(old.stop().success());
    reader.grow(100).await;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    assert!(new.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_that_stop_together_leave_their_agents_to_nobody() {
    let camp = Camp::new(&[("agent", &counting())], "[engine]\nshutdown_grace = \"1s\"\nworkers = 1").await;
    let daemons = [camp.daemon(), camp.daemon()];
    let runs = [camp.send("agent", "s", "hi").await.id, camp.send("agent", "t", "hi").await.id];
    for run in runs {
        Reader::of(&camp, run).await.grow(20).await;
    }
    daemons.iter().for_each(|daemon| daemon.signal("TERM"));
    for daemon in daemons {
        assert!(daemon.wait().success());
    }
    for run in runs {
        assert_eq!(camp.watcher.run(run).await.unwrap().status, Status::Interrupted);
        leaves_nothing(&camp, run).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_by_hand_ends_an_agent_that_somebody_cancelled() {
    let (camp, daemon, run, _) = speaking("", 50).await;
    daemon.kill();
    camp.watcher.cancel_run(run).await.unwrap();
    camp.watcher.sweep().await.unwrap();
    assert_eq!(camp.watcher.run(run).await.unwrap().status, Status::Cancelled);
    leaves_nothing(&camp, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_stop_ends_the_agents_unless_told_otherwise() {
    for (more, goes_on) in [("", false), ("on_shutdown = \"leave\"", true)] {
        let config = format!("[engine]\nshutdown_grace = \"0s\"\n{more}");
        let (camp, daemon, run, _) = speaking(&config, 50).await;
        assert!(daemon.stop().success());
        assert_eq!(marked(run) != NOTHING, goes_on);
        if goes_on {
            let daemon = camp.daemon();
            ends_well(&camp, run).await;
            assert!(daemon.stop().success());
        } else {
            let run = camp.watcher.run(run).await.unwrap();
            assert_eq!((run.status, run.cause.as_deref()), (Status::Interrupted, Some("shutdown")));
            leaves_nothing(&camp, run.id).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kind_of_error_an_agent_reported_to_a_daemon_that_is_gone_is_known_when_its_run_ends() {
    let failed = r#"{"type":"result","is_error":true,"api_error_status":429,"result":"out of tokens"}"#;
    let init = r#"{"type":"system","subtype":"init","session_id":"one"}"#;
    let script = Value::from(format!("echo '{init}'; echo '{failed}'; while [ ! -e stop ]; do sleep 0.01; done"));
    let agent =
        format!("[agents.c]\ndriver = \"claude\"\ncommand = [\"sh\", \"-c\", {script}]\n[workspaces.c]\nagent = \"c\"");
    let camp = Camp::new(&[], &agent).await;
    let daemon = camp.daemon();
    let run = camp.send("c", "s", "hi").await.id;
    camp.grown(run, 4).await;
    daemon.kill();
    std::fs::write(camp.dir.path().join("stop"), "").unwrap();
    let daemon = camp.daemon();
    assert_eq!(settled(&camp.watcher, run).await.error_class, Some(ErrorClass::RateLimit));
    assert!(daemon.stop().success());
    let log = camp.log();
    let settled = log.lines().find(|line| line.contains("run settled")).unwrap();
    assert!(settled.contains("\"class\":\"rate_limit\""), "{settled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_had_failed_before_it_could_be_stopped_has_failed() {
    let delta = r#"{"event":"agent","stream":"assistant","data":{"delta":"x"}}"#;
    let error = r#"{"event":"error","data":{"message":"it failed"}}"#;
    // More than is read at once: the error is still unread when the stop comes.
    let agent = format!("yes '{delta}' | head -n 50000; echo '{error}'; echo $$ > over");
    let camp = Camp::new(&[("agent", &agent)], "[engine]\nshutdown_grace = \"0s\"").await;
    let daemon = camp.daemon();
    let run = camp.send("agent", "s", "hi").await.id;
    let over = camp.dir.path().join("over");
    let is_over = |pid: String| pid.ends_with('\n') && !Path::new(&format!("/proc/{}", pid.trim_end())).exists();
    until(|| std::fs::read_to_string(&over).is_ok_and(is_over)).await;
    assert!(daemon.stop().success());
    let run = camp.watcher.run(run).await.unwrap();
    assert_eq!((run.status, run.cause.as_deref(), run.exit_code), (Status::Failed, Some("agent_error"), Some(0)));
    assert!(run.error.as_deref().is_some_and(|error| error.contains("it failed")), "{run:?}");
    leaves_nothing(&camp, run.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_said_and_how_it_ended_while_nobody_was_there_is_kept() {
    let (camp, daemon, run, reader) = speaking("", 50).await;
    let host = host_of(run);
    daemon.kill();
    let record = || std::fs::read(camp.dir.path().join("record")).unwrap_or_default().len();
    let before = record();
    until(|| record() > before + 100).await;
    std::fs::write(camp.dir.path().join("stop"), "").unwrap();
    until(|| !Path::new(&format!("/proc/{host}")).exists()).await;
    let daemon = camp.daemon();
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_an_agent_that_was_adopted_also_when_it_was_asked_for_in_between() {
    for between in [false, true] {
        let (camp, daemon, run, mut reader) = speaking("", 50).await;
        daemon.kill();
        if between {
            camp.watcher.cancel_run(run).await.unwrap();
        }
        let daemon = camp.daemon();
        if !between {
            reader.grow(50).await;
            camp.watcher.cancel_run(run).await.unwrap();
        }
        assert_eq!(settled(&camp.watcher, run).await.status, Status::Cancelled);
        assert!(story(&camp.watcher, run).await.ends_with("text-end finish-step abort finish=other"));
        leaves_nothing(&camp, run).await;
        assert!(daemon.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_host_dies_the_agent_is_ended_and_the_run_interrupted() {
    for with_daemon in [true, false] {
        let (camp, mut daemon, run, _) = speaking("", 50).await;
        let host = host_of(run);
        if !with_daemon {
            daemon.kill();
            kill(host);
            daemon = camp.daemon();
        } else {
            kill(host);
        }
        let run = settled(&camp.watcher, run).await;
        assert_eq!((run.status, run.cause.as_deref()), (Status::Interrupted, Some("shim_lost")));
        assert!(story(&camp.watcher, run.id).await.ends_with("finish=error"));
        leaves_nothing(&camp, run.id).await;
        assert!(daemon.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_goes_on_with_its_session_when_the_daemon_dies() {
    let camp = Camp::new(&[("agent", &counting())], "").await;
    let daemon = camp.daemon();
    let mut cli = mainstay(&camp, &["run", "--workspace", "agent", "--session", "s", "hi"]).spawn().unwrap();
    let run = within(async {
        loop {
            if let Ok(Some(run)) = camp.watcher.current_run(&"s".parse().unwrap()).await {
                break run.id;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut reader = Reader::of(&camp, run).await;
    reader.grow(50).await;
    daemon.kill();
    reader.grow(100).await;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    let status = within(tokio::task::spawn_blocking(move || cli.wait().unwrap())).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_by_hand_leaves_living_agents_to_a_daemon_and_settles_what_has_ended() {
    let (camp, daemon, run, reader) = speaking("", 50).await;
    let host = host_of(run);
    daemon.kill();
    let report = camp.watcher.sweep().await.unwrap();
    assert_eq!((report.runs_left, report.runs_settled, report.processes_ended), (1, 0, 0));
    assert_ne!(marked(run), NOTHING);
    std::fs::write(camp.dir.path().join("stop"), "").unwrap();
    until(|| !Path::new(&format!("/proc/{host}")).exists()).await;
    assert_eq!(camp.watcher.sweep().await.unwrap().runs_settled, 1);
    ends_well(&camp, run).await;
    reader.end(&camp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ended_in_time_while_nobody_was_there_was_not_too_late() {
    let camp = Camp::new(&[("agent", &counting())], "").await;
    let config = std::fs::read_to_string(&camp.config).unwrap();
    std::fs::write(&camp.config, config.replace("[agents.agent]", "[agents.agent]\nturn_timeout = \"1h\"")).unwrap();
    let daemon = camp.daemon();
    let run = camp.send("agent", "s", "hi").await.id;
    let mut reader = Reader::of(&camp, run).await;
    reader.grow(50).await;
    let host = host_of(run);
    daemon.kill();
    std::fs::write(camp.dir.path().join("stop"), "").unwrap();
    until(|| !Path::new(&format!("/proc/{host}")).exists()).await;
    // By now the turn would be over its limit.
    std::fs::write(&camp.config, config.replace("[agents.agent]", "[agents.agent]\nturn_timeout = \"100ms\"")).unwrap();
    let daemon = camp.daemon();
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_is_no_silence_of_the_agent() {
    let camp = Camp::new(&[("agent", &counting())], "").await;
    let config = std::fs::read_to_string(&camp.config).unwrap();
    std::fs::write(&camp.config, config.replace("[agents.agent]", "[agents.agent]\nidle_timeout = \"2s\"")).unwrap();
    let daemon = camp.daemon();
    let run = camp.send("agent", "s", "hi").await.id;
    let mut reader = Reader::of(&camp, run).await;
    reader.grow(50).await;
    let other = rusqlite::Connection::open(&camp.db).unwrap();
    other.busy_timeout(Duration::from_secs(30)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // It speaks for longer than it may be silent: 250 words of four bytes, 10 ms apart.
    let record = || std::fs::read(camp.dir.path().join("record")).unwrap().len();
    let before = record();
    until(|| record() > before + 1000).await;
    other.execute_batch("ROLLBACK").unwrap();
    reader.grow(500).await;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_know_an_agent_leaves_it_alone_and_settles_its_run_once_it_has_ended() {
    let (camp, daemon, run, mut reader) = speaking(QUICK, 50).await;
    daemon.signal("USR2");
    assert!(daemon.wait().success());
    let config = std::fs::read_to_string(&camp.config).unwrap();
    std::fs::write(&camp.config, "").unwrap();
    let sweep = |camp: &Camp| assert!(mainstay(camp, &["sweep"]).status().unwrap().success());
    sweep(&camp);
    std::fs::write(&camp.config, config).unwrap();
    let daemon = camp.daemon();
    reader.grow(50).await;
    let host = host_of(run);
    daemon.kill();
    std::fs::write(camp.dir.path().join("stop"), "").unwrap();
    until(|| !Path::new(&format!("/proc/{host}")).exists()).await;
    // The config does not name the agent any more.
    std::fs::write(&camp.config, "").unwrap();
    sweep(&camp);
    let run = settled(&camp.watcher, run).await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Interrupted, Some("worker_lost")));
    leaves_nothing(&camp, run.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_file_descriptors_left_leaves_agents_alone_and_goes_on_with_them_later() {
    let (camp, daemon, run, mut reader) = speaking(QUICK, 50).await;
    let next = camp.daemon();
    let limit = |files: u32| {
        let limit = format!("--nofile={files}:4096");
        assert!(Command::new("prlimit").args(["--pid", &next.pid().to_string(), &limit]).status().unwrap().success());
    };
    limit(3);
    daemon.kill();
    until(|| camp.log().contains("Postponed")).await;
    limit(4096);
    reader.grow(100).await;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    assert!(next.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_run_was_settled_by_somebody_else_is_ended_by_the_sweep() {
    let (camp, daemon, run, _) = speaking("", 50).await;
    daemon.kill();
    // As in a copy of the database that knows nothing of this run.
    let db = rusqlite::Connection::open(&camp.db).unwrap();
    let settle = "UPDATE runs SET status = 'interrupted', cause = 'worker_lost', settled_at = 1, lease_worker = NULL, \
                  lease_expires_at = NULL";
    assert_eq!(db.execute(settle, []).unwrap(), 1);
    drop(db);
    let report = camp.watcher.sweep().await.unwrap();
    assert!(report.processes_ended >= 2 && report.homes_removed == 1, "{report:?}");
    leaves_nothing(&camp, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_a_database_that_is_removed_end_by_themselves() {
    let (camp, daemon, run, _) = speaking("", 50).await;
    daemon.kill();
    assert_ne!(marked(run), NOTHING);
    let dir = camp.dir.path().to_owned();
    drop(camp);
    // The shim may have written in between.
    until(|| std::fs::remove_dir_all(&dir).is_ok() || !dir.exists()).await;
    until(|| marked(run).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_another_boot_is_settled_with_all_that_its_agent_said() {
    let (camp, daemon, run, mut reader) = speaking(QUICK, 50).await;
    let (host, agent) = (host_of(run), marked(run)[0]);
    daemon.kill();
    let record = || std::fs::read(camp.dir.path().join("record")).unwrap_or_default().len();
    let before = record();
    until(|| record() > before + 100).await;
    // All power goes at once, and the machine comes up as another one.
    kill(host);
    kill(agent);
    let db = rusqlite::Connection::open(&camp.db).unwrap();
    db.execute("UPDATE runs SET pid_scope = 'former'", []).unwrap();
    db.execute("UPDATE workers SET pid_scope = 'former'", []).unwrap();
    drop(db);
    let daemon = camp.daemon();
    let run = settled(&camp.watcher, run).await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Interrupted, Some("shim_lost")));
    while reader.read().await {}
    let record = std::fs::read_to_string(camp.dir.path().join("record")).unwrap();
    assert!(reader.text.starts_with(&record[..before + 50]), "what was said while nobody was there is missing");
    leaves_nothing(&camp, run.id).await;
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_is_resumed_once_and_only_while_it_is_the_latest() {
    let script = format!(
        "echo \"$MAINSTAY_SESSION: $1\" >> told; {}; while [ ! -e stop ]; do sleep 0.02; done; {}",
        says("begun"),
        says(" done")
    );
    let camp = Camp::new(&[("agent", &script)], "").await;
    let config = std::fs::read_to_string(&camp.config).unwrap();
    let resume = "[agents.agent]\non_interrupt = \"resume\"\nresume_message = \"go on\"";
    std::fs::write(&camp.config, config.replace("[agents.agent]", resume)).unwrap();
    let daemon = camp.daemon();
    let runs = |session: &str| {
        let (camp, session) = (&camp, session.parse::<SessionId>().unwrap());
        async move {
            let filter = RunFilter { session: Some(session), ..RunFilter::default() };
            let mut runs = camp.watcher.list_runs(&filter, 10).await.unwrap();
            runs.reverse();
            runs
        }
    };

    let first = camp.send("agent", "s", "hi").await.id;
    camp.grown(first, 4).await;
    kill(host_of(first));
    let first = settled(&camp.watcher, first).await;
    assert_eq!((first.status, first.resumes), (Status::Interrupted, None));
    let session = "s".parse().unwrap();
    let page = camp.watcher.list_messages(&session, MessageCursor::START, 500, false).await.unwrap();
    assert!(page.messages.iter().any(|message| message.parts.get().contains("begun")), "its words stay shown");
    let found = runs("s").await;
    let second = &found[1].1;
    assert_eq!((found.len(), second.resumes, &second.message_id), (2, Some(first.id), &first.message_id));
    camp.grown(second.id, 4).await;
    kill(host_of(second.id));
    assert_eq!(settled(&camp.watcher, second.id).await.status, Status::Interrupted);
    assert_eq!(runs("s").await.len(), 2, "its one time is over");

    let cancelled = camp.send("agent", "t", "hi").await.id;
    camp.grown(cancelled, 4).await;
    camp.watcher.cancel_run(cancelled).await.unwrap();
    assert_eq!(settled(&camp.watcher, cancelled).await.status, Status::Cancelled);
    assert_eq!(runs("t").await.len(), 1, "a person did not want it");

    let old = camp.send("agent", "u", "hi").await.id;
    camp.grown(old, 4).await;
    let newer = camp.send("agent", "u", "something else").await.id;
    kill(host_of(old));
    assert_eq!(settled(&camp.watcher, old).await.status, Status::Interrupted);
    camp.grown(newer, 4).await;
    std::fs::write(camp.dir.path().join("stop"), "").unwrap();
    assert_eq!(settled(&camp.watcher, newer).await.status, Status::Completed);
    assert_eq!(runs("u").await.len(), 2, "something newer was asked");
    let told = std::fs::read_to_string(camp.dir.path().join("told")).unwrap();
    assert_eq!(told, "s: hi\ns: go on\nt: hi\nu: hi\nu: something else\n");
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_agents_are_adopted_at_once() {
    let script = format!("{}; while [ ! -e stop ]; do sleep 0.1; done; {}", says("first"), says(" last"));
    let config = "[engine]\nworkers = 100\n[workspaces.many]\nagent = \"agent\"\nslots = 100";
    let camp = Camp::new(&[("agent", &script)], config).await;
    let daemon = camp.daemon();
    let mut runs = Vec::new();
    for number in 0..100 {
        let run = camp.send("many", &format!("s{number}"), "hi").await.id;
        runs.push(run);
    }
    for run in &runs {
        camp.grown(*run, 4).await;
    }
    daemon.kill();
    let daemon: Daemon = camp.daemon();
    until(|| camp.log().matches("run adopted").count() == 100).await;
    std::fs::write(camp.dir.path().join("stop"), "").unwrap();
    for run in runs {
        assert_eq!(settled(&camp.watcher, run).await.status, Status::Completed);
        assert!(story(&camp.watcher, run).await.contains("text-delta=first text-delta= last"));
    }
    assert!(daemon.stop().success());
}

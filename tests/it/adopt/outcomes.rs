//! The end of a run whose agent continued, ended or was cancelled while no daemon was running.

use std::path::Path;

use mainstay::engine::{MessageCursor, RunFilter};
use mainstay::failure::ErrorClass;
use mainstay::id::SessionId;
use mainstay::run::Status;
use serde_json::Value;

use super::{QUICK, Reader, counting, ends_well, host_of, kill, leaves_nothing, mainstay, speaking};
use crate::scene::{Camp, marked, says, settled, story, until};

#[tokio::test(flavor = "multi_thread")]
async fn error_class_reported_to_a_lost_daemon_is_kept() {
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
    daemon.stop();
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
    daemon.stop();
    let run = camp.watcher.run(run).await.unwrap();
    assert_eq!((run.status, run.cause.as_deref(), run.exit_code), (Status::Failed, Some("agent_error"), Some(0)));
    assert!(run.error.as_deref().is_some_and(|error| error.contains("it failed")), "{run:?}");
    leaves_nothing(&camp, run.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_and_exit_of_an_unwatched_agent_are_kept() {
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
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_reaches_an_adopted_agent_also_when_requested_before() {
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
        daemon.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_death_ends_the_agent_and_interrupts_the_run() {
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
        daemon.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unwatched_agent_that_ended_in_time_did_not_time_out() {
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
    // By now the turn would have exceeded its limit.
    std::fs::write(&camp.config, config.replace("[agents.agent]", "[agents.agent]\nturn_timeout = \"100ms\"")).unwrap();
    let daemon = camp.daemon();
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_without_the_agent_in_its_config_settles_after_its_end() {
    let (camp, mut daemon, run, mut reader) = speaking(QUICK, 50).await;
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
async fn run_of_another_boot_is_settled_with_its_whole_output() {
    let (camp, daemon, run, mut reader) = speaking(QUICK, 50).await;
    let (host, agent) = (host_of(run), marked(run)[0]);
    daemon.kill();
    let record = || std::fs::read(camp.dir.path().join("record")).unwrap_or_default().len();
    let before = record();
    until(|| record() > before + 100).await;
    // The machine loses power, and boots with another boot id.
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
    assert!(reader.text.starts_with(&record[..before + 50]), "what was said while no engine ran is missing");
    leaves_nothing(&camp, run.id).await;
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_run_is_resumed_once_while_it_is_the_latest() {
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
    daemon.stop();
}

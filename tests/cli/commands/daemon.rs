//! Commands beside a daemon, and the effect of signals on either.

use std::process::Stdio;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::service::scene::ignores_hangup;

use super::{Scene, ended, json_lines, signal, until};

#[tokio::test]
async fn a_daemon_serves_and_the_commands_work_with_it() {
    let scene = Scene::new();
    let (daemon, address) = scene.serve(&["--log-format", "json"]).await;
    let health = reqwest::get(format!("http://{address}/healthz")).await.unwrap();
    assert_eq!(health.status(), 200);
    assert_eq!(scene.mainstay(&["workers", "--json"]).await.json()[0]["capacity"], 8);
    let stderr = scene.mainstay(&["serve", "--listen", &address]).await.refused(1);
    assert!(stderr.contains(&address), "{stderr}");

    // `send` prints the id of the run and nothing else.
    let sent = scene.mainstay(&["send", "s", "/slow 5"]).await.printed();
    let run = sent.trim_end();
    assert_eq!(sent, format!("{run}\n"));
    let answer = scene.mainstay(&["attach", run]).await.printed();
    assert!(answer.starts_with("1 2 3 4 5"), "{answer}");
    assert_eq!(
        scene.mainstay(&["attach", "s"]).await.printed(),
        format!("> /slow 5\n{answer}"),
        "a session's runs, and its end when it is idle"
    );
    let run_stream = scene.mainstay(&["attach", run, "--format", "sse"]).await.printed();
    assert!(run_stream.starts_with("id: 1\ndata: {") && run_stream.ends_with("data: [DONE]\n\n"), "{run_stream}");
    let session_stream = scene.mainstay(&["attach", "s", "--format", "sse"]).await.printed();
    assert_eq!(session_stream, run_stream.trim_end_matches("data: [DONE]\n\n"));
    let all = scene.mainstay(&["attach", "s", "--json"]).await.json();
    let rest = scene.mainstay(&["attach", "s", "--after", "3", "--format", "ndjson"]).await.json();
    assert_eq!((rest.len(), &rest[0]), (all.len() - 3, &all[3]));
    scene.mainstay(&["attach", "s", "--after", "999"]).await.refused(1);

    // `run` leaves it to the daemon.
    scene.mainstay(&["run", "--session", "s", "hi"]).await.printed();
    let failed = scene.mainstay(&["--json", "send", "s", "/exit 3"]).await.json();
    assert_eq!((failed[0]["status"].as_str(), failed[0]["session_id"].as_str()), (Some("queued"), Some("s")));
    assert_eq!(scene.mainstay(&["attach", failed[0]["id"].as_str().unwrap()]).await.code, Some(1));
    assert_eq!(scene.mainstay(&["attach", "s"]).await.code, Some(1), "as its last run");

    // Busy, cancelled, closed.
    let hanging = scene.mainstay(&["send", "s", "/hang"]).await.printed();
    let (watching, mut lines) = scene.begin(&["attach", hanging.trim_end(), "--json"]);
    until(&mut lines, "text-delta").await;
    assert!(scene.mainstay(&["send", "s", "hi", "--when-busy", "reject"]).await.refused(1).contains("busy"));
    assert!(scene.mainstay(&["close", "s"]).await.refused(1).contains("busy"));
    let cancelled = scene.mainstay(&["cancel", "s", "--wait"]).await.printed();
    assert_eq!(cancelled, format!("{} cancelled\n", hanging.trim_end()));
    until(&mut lines, r#""abort""#).await;
    assert_eq!(ended(watching).await.code, Some(1), "the watching client learns how it ended");
    assert_eq!(scene.mainstay(&["cancel", hanging.trim_end()]).await.printed(), cancelled, "again changes nothing");
    assert_eq!(scene.mainstay(&["cancel", "s"]).await.printed(), "nothing to cancel\n");
    assert_eq!(scene.mainstay(&["close", "s"]).await.printed(), "s closed\n");
    assert_eq!(scene.ask("SELECT group_concat(DISTINCT state) FROM v_slots"), "free");

    signal(&daemon, Signal::TERM);
    let stopped = ended(daemon).await;
    assert_eq!((stopped.code, stopped.stdout.as_str()), (Some(0), ""), "the ready line is all on stdout");
    let log = json_lines(&stopped.stderr);
    assert_eq!(log.iter().filter(|line| line["message"] == "run started").count(), 4, "the daemon executed them all");
}

#[tokio::test]
async fn what_waits_for_a_daemon_says_so() {
    let scene = Scene::new();
    let sent = scene.mainstay(&["send", "s", "hi"]).await;
    assert_eq!(sent.code, Some(0));
    assert!(sent.stderr.contains("mainstay serve"), "{}", sent.stderr);
    scene.mainstay(&["send", "s", "hi", "-q"]).await.printed();
    // Only the next command executes what was sent before, in order.
    // On a loaded machine it reports that it waits for those runs.
    assert_eq!(scene.mainstay(&["run", "--session", "s", "hi"]).await.code, Some(0));
    assert_eq!(scene.ask("SELECT group_concat(DISTINCT status) FROM v_runs"), "completed");
}

#[tokio::test]
async fn run_under_nohup_outlives_the_terminal() {
    let scene = Scene::new();
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_mainstay")).args(["--json", "run", "--session", "mine", "/hang"]);
    command.current_dir(scene.dir.path()).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    until(&mut lines, "text-delta").await;
    signal(&running, Signal::HUP);
    scene.mainstay(&["cancel", "mine", "--wait"]).await.printed();
    assert_eq!(ended(running).await.code, Some(1), "it saw the end of its run");
}

#[tokio::test]
async fn ctrl_c_cancels_what_was_started_and_leaves_what_was_watched() {
    let scene = Scene::new();
    // A closed terminal has the effect of Ctrl-C: the agent is not left behind. Except under `nohup`, which the commands inherit
    // from the tests: then they rightly keep running.
    let hangup = (!ignores_hangup()).then_some(Signal::HUP);
    for stop in [Signal::INT, Signal::TERM].into_iter().chain(hangup) {
        let (running, mut lines) = scene.begin(&["--json", "run", "--session", "mine", "/hang"]);
        until(&mut lines, "text-delta").await;
        signal(&running, stop);
        assert_eq!(ended(running).await.code, Some(130));
        assert_eq!(scene.ask("SELECT group_concat(DISTINCT status) FROM v_runs"), "cancelled");
    }

    let (mut daemon, _) = scene.serve(&[]).await;
    scene.mainstay(&["send", "theirs", "/hang"]).await.printed();
    for args in [&["attach", "theirs", "--json"] as &[&str], &["attach", "theirs", "--json", "--follow"]] {
        let (attached, mut lines) = scene.begin(args);
        until(&mut lines, "text-delta").await;
        signal(&attached, Signal::INT);
        assert_eq!(ended(attached).await.code, Some(130));
    }
    let status = "SELECT status FROM v_runs WHERE session_id = 'theirs'";
    assert_eq!(scene.ask(status), "running");

    // The default grace is half a minute: the first signal lets the turn finish, the second ends it.
    signal(&daemon, Signal::TERM);
    let mut log = BufReader::new(daemon.stderr.take().unwrap()).lines();
    until(&mut log, "a second signal").await;
    daemon.stderr = Some(log.into_inner().into_inner());
    signal(&daemon, Signal::TERM);
    assert_eq!(ended(daemon).await.code, Some(0));
    assert_eq!(scene.ask(status), "interrupted");
}

#[tokio::test]
async fn run_does_not_wait_for_a_daemon_that_was_killed() {
    let scene = Scene::new();
    let (daemon, _) = scene.serve(&[]).await;
    let (running, mut lines) = scene.begin(&["--json", "run", "/slow 150"]);
    until(&mut lines, "text-delta").await;
    signal(&daemon, Signal::KILL);
    until(&mut lines, r#""finish""#).await;
    assert_eq!(ended(running).await.code, Some(0), "its agent went on, and so does the run in this process");
    assert_eq!(scene.ask("SELECT status || attempts FROM v_runs"), "completed1");
}

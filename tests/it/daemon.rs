//! Daemons as processes: killed, stopped, and several on one file.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mainstay::run::Status;

use crate::scene::{Camp, NOTHING, counts, marked, read_all, says, settled, tell, until, within};

fn streaming() -> String {
    "i=0; while :; do i=$((i+1)); \
     echo \"{\\\"event\\\":\\\"agent\\\",\\\"stream\\\":\\\"assistant\\\",\\\"data\\\":{\\\"delta\\\":\\\"$i \\\"}}\"; sleep 0.01; done"
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_in_mid_stream_loses_nothing_and_leaves_nothing() {
    let answer = format!("case $1 in stream) {};; *) {};; esac", streaming(), says("ok"));
    let camp = Camp::new(&[("agent", &answer)], "[engine]\nsweep_interval = \"1h\"").await;
    let daemon = camp.daemon();
    let run = camp.send("agent", "s", "stream").await;
    let next = camp.send("agent", "s", "next").await;
    let acknowledged = camp.grown(run.id, 30).await;
    assert!(!marked(run.id).is_empty());
    daemon.kill();

    let begun = Instant::now();
    let daemon = camp.daemon();
    let run = settled(&camp.watcher, run.id).await;
    let took = begun.elapsed();
    assert_eq!((run.status, run.cause.as_deref()), (Status::Interrupted, Some("worker_lost")));
    assert_eq!(marked(run.id), NOTHING, "the agent outlived its daemon");
    // The promise is a second; a loaded machine gets more, but far less than any lease.
    assert!(took < Duration::from_secs(10), "{took:?}");
    let events = read_all(camp.watcher.follow_run(run.id, 0).await.unwrap()).await;
    assert_eq!(events[..acknowledged.len()], acknowledged, "an acknowledged event is missing");
    let seqs: Vec<_> = events.iter().map(|(seq, _)| seq.unwrap()).collect();
    assert_eq!(seqs, (1..=i64::try_from(events.len()).unwrap()).collect::<Vec<_>>());
    let story = tell(events.iter().map(|(_, event)| serde_json::from_str(event).unwrap()));
    assert!(story.contains("text-end finish-step error=") && story.ends_with("finish=error"), "{story}");
    assert_eq!(settled(&camp.watcher, next.id).await.status, Status::Completed, "the next queued run starts");
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_stopped_past_its_lease_writes_nothing_more() {
    let more = "[engine]\nlease = \"1s\"\nsweep_interval = \"1h\"";
    let camp = Camp::new(&[("agent", &streaming())], more).await;
    let paused = camp.daemon();
    let run = camp.send("agent", "s", "hi").await;
    camp.grown(run.id, 10).await;
    camp.pause(&paused);
    let other = camp.daemon();
    let run = settled(&camp.watcher, run.id).await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Interrupted, Some("worker_lost")));
    assert_eq!(marked(run.id), NOTHING);
    paused.signal("CONT");
    // It serves on: the next run that it or the other one takes proves that it is through with the old one.
    let again = camp.send("agent", "t", "hi").await;
    camp.grown(again.id, 5).await;
    camp.watcher.cancel_run(again.id).await.unwrap();
    settled(&camp.watcher, again.id).await;
    assert!(paused.stop().success());
    let events = camp.watcher.session_events(&"s".parse().unwrap(), 0, 100_000).await.unwrap();
    assert_eq!(Some(events.last().unwrap().seq), run.last_seq, "a late write was stored");
    assert_eq!(
        events.iter().map(|event| event.seq).collect::<Vec<_>>(),
        (1..=run.last_seq.unwrap()).collect::<Vec<_>>()
    );
    assert!(other.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn three_daemons_on_one_file_execute_each_run_once() {
    let script = "echo \"begin $MAINSTAY_RUN $MAINSTAY_SESSION $MAINSTAY_SLOT\" >> log; ".to_owned()
        + &says("ok")
        + "; echo \"end $MAINSTAY_RUN $MAINSTAY_SESSION $MAINSTAY_SLOT\" >> log";
    let camp = Camp::new(&[("agent", &script)], "").await;
    let daemons = [camp.daemon(), camp.daemon(), camp.daemon()];
    let mut runs = Vec::new();
    for number in 0..1000 {
        runs.push(camp.send("agent", &format!("s{}", number % 50), &number.to_string()).await.id);
    }
    for run in &runs {
        assert_eq!(settled(&camp.watcher, *run).await.status, Status::Completed);
    }
    let log = std::fs::read_to_string(camp.dir.path().join("log")).unwrap();
    let lines: Vec<Vec<&str>> = log.lines().map(|line| line.split(' ').collect()).collect();
    let begun = counts(lines.iter().filter(|line| line[0] == "begin").map(|line| line[1].to_owned()));
    assert_eq!(begun.len(), 1000);
    assert!(begun.values().all(|times| *times == 1), "a run was executed twice");
    // The log is in the order of time, since each line is one append: nobody begins before the one before has ended.
    let mut busy: BTreeMap<&str, &str> = BTreeMap::new();
    for line in &lines {
        for place in &line[2..4] {
            match line[0] {
                "begin" => assert_eq!(busy.insert(place, line[1]), None, "two at a time in {place}"),
                _ => assert_eq!(busy.remove(place), Some(line[1])),
            }
        }
    }
    let slots = counts(lines.iter().map(|line| line[3]));
    assert_eq!(slots.len(), 6, "five slots and the shared agent: {slots:?}");
    for daemon in daemons {
        assert!(daemon.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_asked_to_stop_lets_turns_finish() {
    let script = format!("{}; while [ ! -e go ]; do sleep 0.01; done; {}", says("first"), says("last"));
    let camp = Camp::new(&[("gated", &script)], "").await;
    let daemon = camp.daemon();
    let run = camp.send("gated", "s", "hi").await;
    camp.grown(run.id, 4).await;
    daemon.signal("TERM");
    std::fs::write(camp.dir.path().join("go"), "").unwrap();
    assert!(daemon.wait().success());
    assert_eq!(camp.watcher.run(run.id).await.unwrap().status, Status::Completed);
    assert!(camp.watcher.list_workers().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_lease_leaves_the_next_attempt_alone() {
    let script = format!(
        "if [ -e tried ]; then {}; while [ ! -e go ]; do sleep 0.05; done; {}; else touch tried; exec tail -f /dev/null; fi",
        says("second"),
        says("done")
    );
    let camp = Camp::new(&[("agent", &script)], "[engine]\nlease = \"1s\"\nsweep_interval = \"1s\"").await;
    let paused = camp.daemon();
    let run = camp.send("agent", "s", "hi").await;
    until(|| camp.dir.path().join("tried").exists()).await;
    camp.pause(&paused);
    let other = camp.daemon();
    camp.grown(run.id, 4).await;
    paused.signal("CONT");
    until(|| camp.log().contains("lease lost")).await;
    std::fs::write(camp.dir.path().join("go"), "").unwrap();
    let run = settled(&camp.watcher, run.id).await;
    assert_eq!((run.status, run.error), (Status::Completed, None));
    assert!(paused.stop().success());
    assert!(other.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn run_ends_when_the_daemon_that_executed_it_dies() {
    let script = format!("{}; exec tail -f /dev/null", says("working"));
    let camp = Camp::new(&[("agent", &script)], "").await;
    let daemon = camp.daemon();
    let mut cli = std::process::Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(["run", "--workspace", "agent", "--session", "s", "--db"])
        .arg(&camp.db)
        .arg("--config")
        .arg(&camp.config)
        .arg("hi")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let run = within(async {
        loop {
            if let Ok(Some(run)) = camp.watcher.current_run(&"s".parse().unwrap()).await {
                break run;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    camp.grown(run.id, 4).await;
    daemon.kill();
    let status = within(tokio::task::spawn_blocking(move || cli.wait().unwrap())).await.unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(camp.watcher.run(run.id).await.unwrap().status, Status::Interrupted);
    assert_eq!(marked(run.id), NOTHING);
}

//! Daemons as processes: several on one file, and how they stop. What happens to their agents: `adopt.rs`.

use std::collections::BTreeMap;

use mainstay::run::Status;

use crate::scene::{Camp, counts, says, settled};

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
    // The log is in order of time, since each line is one append: no turn begins before the previous one has ended.
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
    assert_eq!(slots.len(), 5, "fifty sessions take turns in five slots: {slots:?}");
    for daemon in daemons {
        daemon.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_asked_to_stop_lets_turns_finish() {
    let script = format!("{}; while [ ! -e go ]; do sleep 0.01; done; {}", says("first"), says("last"));
    let camp = Camp::new(&[("gated", &script)], "").await;
    let mut daemon = camp.daemon();
    let run = camp.send("gated", "s", "hi").await;
    camp.grown(run.id, 4).await;
    daemon.signal("TERM");
    std::fs::write(camp.dir.path().join("go"), "").unwrap();
    assert!(daemon.wait().success());
    assert_eq!(camp.watcher.run(run.id).await.unwrap().status, Status::Completed);
    assert!(camp.watcher.list_workers().await.unwrap().is_empty());
}

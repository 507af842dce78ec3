//! Daemons that are killed, paused, stopped and restarted.

use std::process::Command;
use std::time::Duration;

use mainstay::run::Status;

use super::{QUICK, Reader, counting, ends_well, leaves_nothing, mainstay, speaking};
use crate::scene::{Camp, Daemon, NOTHING, marked, says, settled, story, until, within};

#[tokio::test(flavor = "multi_thread")]
async fn daemon_killed_repeatedly_is_nothing_but_a_pause() {
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
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    let next = camp.send("agent", "s", "next").await.id;
    assert_eq!(settled(&camp.watcher, next).await.status, Status::Failed, "the next one starts, and says nothing");
    daemon.stop();
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
async fn daemon_paused_past_its_lease_writes_nothing_and_spares_agent() {
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
    paused.stop();
    other.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_hands_over_leaves_the_agent_to_the_next() {
    let (camp, mut daemon, run, mut reader) = speaking("", 100).await;
    daemon.signal("USR2");
    assert!(daemon.wait().success());
    assert_ne!(marked(run), NOTHING);
    let daemon = camp.daemon();
    reader.grow(100).await;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_daemon_leaves_runs_to_another_that_is_there() {
    let camp = Camp::new(&[("agent", &counting())], "[engine]\nshutdown_grace = \"0s\"").await;
    let old = camp.daemon();
    let run = camp.send("agent", "s", "hi").await.id;
    let mut reader = Reader::of(&camp, run).await;
    reader.grow(100).await;
    let new = camp.daemon();
    old.stop();
    reader.grow(100).await;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    new.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_that_stop_together_leave_no_agents() {
    let camp = Camp::new(&[("agent", &counting())], "[engine]\nshutdown_grace = \"1s\"\nworkers = 1").await;
    let daemons = [camp.daemon(), camp.daemon()];
    let runs = [camp.send("agent", "s", "hi").await.id, camp.send("agent", "t", "hi").await.id];
    for run in runs {
        Reader::of(&camp, run).await.grow(20).await;
    }
    daemons.iter().for_each(|daemon| daemon.signal("TERM"));
    for mut daemon in daemons {
        assert!(daemon.wait().success());
    }
    for run in runs {
        assert_eq!(camp.watcher.run(run).await.unwrap().status, Status::Interrupted);
        leaves_nothing(&camp, run).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_stop_ends_the_agents_unless_told_otherwise() {
    for (more, goes_on) in [("", false), ("on_shutdown = \"leave\"", true)] {
        let config = format!("[engine]\nshutdown_grace = \"0s\"\n{more}");
        let (camp, daemon, run, _) = speaking(&config, 50).await;
        daemon.stop();
        assert_eq!(marked(run) != NOTHING, goes_on);
        if goes_on {
            let daemon = camp.daemon();
            ends_well(&camp, run).await;
            daemon.stop();
        } else {
            let run = camp.watcher.run(run).await.unwrap();
            assert_eq!((run.status, run.cause.as_deref()), (Status::Interrupted, Some("shutdown")));
            leaves_nothing(&camp, run.id).await;
        }
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
    // It speaks for longer than its idle limit: 250 words of four bytes, 10 ms apart.
    let record = || std::fs::read(camp.dir.path().join("record")).unwrap().len();
    let before = record();
    until(|| record() > before + 1000).await;
    other.execute_batch("ROLLBACK").unwrap();
    reader.grow(500).await;
    ends_well(&camp, run).await;
    reader.end(&camp).await;
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_without_file_descriptors_adopts_later() {
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
    next.stop();
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
    daemon.stop();
}

//! The output of `/metrics`, compared with what the daemon did and with docs/operations.md.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::service::scene::{Daemon, Scene, TIMEOUT, block_until};

const OPERATIONS: &str = include_str!("../../../docs/operations.md");

/// The samples, by name with labels, and the types, by name.
struct Scraped {
    samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Scraped {
    async fn of(daemon: &Daemon) -> Self {
        let request = daemon.request(reqwest::Method::GET, "/metrics");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
        let text = response.text().await.unwrap();
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                let suffix = if kind == "counter" { "_total" } else { "" };
                assert_eq!(types.insert(format!("{name}{suffix}"), kind.to_owned()), None, "{name} is there twice");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                samples.insert(name.to_owned(), value.parse().unwrap());
            }
        }
        Self { samples, types }
    }

    #[track_caller]
    fn value(&self, name: &str) -> f64 {
        *self.samples.get(&format!("mainstay_{name}")).unwrap_or_else(|| panic!("no {name}: {:?}", self.samples))
    }
}

#[tokio::test]
async fn every_metric_is_documented_and_exported() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let scraped = Scraped::of(&daemon).await;
    let rows = OPERATIONS.lines().filter_map(|line| line.strip_prefix("| `mainstay_")?.split_once("` | "));
    let written: BTreeMap<_, _> =
        rows.map(|(name, rest)| (format!("mainstay_{name}"), rest.split_once(" |").unwrap().0.to_owned())).collect();
    assert!(written.len() > 20, "the table was not found");
    assert_eq!(scraped.types, written);
    for (name, kind) in &scraped.types {
        let is_there = |sample: &String| sample.split('{').next().unwrap().trim_end_matches("_count") == name;
        assert!(kind == "gauge" || scraped.samples.keys().any(is_there), "{name} has no value before it is raised");
    }
    daemon.stop();
}

#[tokio::test]
async fn a_daemon_counts_what_it_does_and_what_another_left() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    scene.mainstay(&["run", "--session", "a", "hi"]);
    scene.send("b", "/hang");
    // A run that had said nothing when it was killed may be queued again instead of adopted.
    block_until(|| scene.ask("SELECT count(*) FROM runs WHERE said = 1") == 2);
    let mut before = Scraped::of(&daemon).await;
    // A run counts as executing until its agent's leftovers are removed, a moment after its end was committed.
    for _ in 0..TIMEOUT.as_millis() / 10 {
        if before.value("runs_executing") == 1.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        before = Scraped::of(&daemon).await;
    }
    assert_eq!((before.value("runs_executing"), before.value("runs_capacity")), (1.0, 8.0));
    assert_eq!(before.value("runs_settled_total{status=\"completed\"}"), 1.0);
    assert_eq!(before.value("runs_settled_total{status=\"interrupted\"}"), 0.0);
    assert_eq!(before.value("workers_removed_total"), 0.0);
    assert!(before.value("commit_seconds_count") > 5.0 && before.value("wal_bytes") > 0.0);
    daemon.kill();

    let daemon = scene.daemon();
    block_until(|| scene.log().contains("sweep done"));
    let after = Scraped::of(&daemon).await;
    assert_eq!((after.value("lost_runs_adopted_total"), after.value("workers_removed_total")), (1.0, 1.0));
    assert!(after.value("runs_executing") == 1.0 && after.value("sweeps_total") >= 1.0);
    scene.mainstay(&["cancel", "b", "--wait"]);
    daemon.stop();
}

#[tokio::test]
async fn killed_agent_is_counted_and_logged_with_its_run() {
    let scene = Scene::with_agent("trap '' TERM; touch deaf; while :; do sleep 0.05; done", "");
    let daemon = scene.daemon();
    let run = scene.send("s", "hi");
    block_until(|| scene.path("deaf").exists());
    scene.mainstay(&["cancel", &run, "--wait"]);
    let scraped = Scraped::of(&daemon).await;
    assert_eq!(scraped.value("agents_killed_total"), 1.0);
    let log = scene.log();
    let line = log.lines().find(|line| line.contains("the agent did not end when asked")).unwrap();
    assert!(line.contains(&format!("run.id={run}")) && line.contains("session.id=s"), "{line}");
    daemon.stop();
}

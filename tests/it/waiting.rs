//! The reasons why runs wait, and how they are reported.

use mainstay::run::Status;
use mainstay::waiting::WaitsFor;

use crate::scene::{Scene, within};

const CONFIG: &str = "[engine]\nworkers = 5\n[agents.one]\ndriver = \"demo\"\nmax_concurrent = 1\n\
    [workspaces.small]\nslots = 1\n[workspaces.shared]\nslots = 0\n[workspaces.limited]\nagent = \"one\"\n";

#[tokio::test]
async fn run_tells_what_it_waits_for() {
    let scene = Scene::new(&[], CONFIG).await;
    let hang = async |workspace: &str, session: &str| {
        let run = scene.send(workspace, session, "/hang").await;
        scene.said(run.id, "cancelled").await;
        run
    };
    let reason = async |workspace: &str, session: &str| {
        let run = scene.send(workspace, session, "hi").await;
        let seen = scene.engine.run(run.id).await.unwrap();
        assert_eq!(seen.status, Status::Queued);
        seen.waits_for.unwrap()
    };
    let first = hang("small", "a").await;
    assert_eq!(first.waits_for, Some(WaitsFor::Worker), "so it was when it was sent");
    assert_eq!(scene.engine.run(first.id).await.unwrap().waits_for, None, "it goes on");
    assert_eq!(reason("small", "a").await, WaitsFor::Turn);
    assert_eq!(reason("small", "b").await, WaitsFor::Slot);
    hang("shared", "c").await;
    assert_eq!(reason("shared", "d").await, WaitsFor::SharedAgent);
    hang("limited", "e").await;
    assert_eq!(reason("limited", "f").await, WaitsFor::AgentLimit);

    let asking = scene.send("default", "g", "/ask").await;
    within(async {
        while scene.engine.run(asking.id).await.unwrap().waits_for != Some(WaitsFor::Answer) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    hang("default", "h").await;
    let last = scene.send("default", "i", "hi").await;
    let waits_for = async || scene.engine.run(last.id).await.unwrap().waits_for;
    assert_eq!(waits_for().await, Some(WaitsFor::Worker), "all five are busy");
    let park = "UPDATE runs SET not_before = 4000000000000 WHERE id = ?1";
    let db = rusqlite::Connection::open(scene.dir.path().join("m.db")).unwrap();
    db.execute(park, [last.id.to_string()]).unwrap();
    assert_eq!(waits_for().await, Some(WaitsFor::NotBefore));
    scene.engine.cancel_run(last.id).await.unwrap();
    assert_eq!(waits_for().await, None);
}

#[tokio::test]
async fn run_without_daemon_waits_for_one() {
    let scene = Scene::idle(&[], "").await;
    let run = scene.send("default", "s", "hi").await;
    assert_eq!(run.waits_for, Some(WaitsFor::Daemon));
    let behind = scene.send("default", "s", "hi").await;
    assert_eq!(behind.waits_for, Some(WaitsFor::Turn));
    let runs = scene.engine.list_runs(&Default::default(), 10).await.unwrap();
    let reasons: Vec<_> = runs.iter().map(|(_, run)| run.waits_for.unwrap()).collect();
    assert_eq!(reasons, [WaitsFor::Turn, WaitsFor::Daemon]);
}

//! The survey of agents: it starts programs, so it is bounded, shared, and leaves nothing running.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use mainstay::engine::agents::SURVEY_MAX_AGE;
use mainstay::http::Timeouts;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::scene::{Scene, within};

/// The config of an agent whose program is this script, created in a directory.
fn agent(dir: &Path, script: &str) -> String {
    let program = dir.join("agent");
    std::fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", dir.display())).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    format!("[agents.it]\ndriver = \"acp\"\ncommand = [{program:?}]\n")
}

async fn until(what: impl Fn() -> bool) {
    within(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn one_survey_answers_all_who_ask() {
    let dir = tempfile::tempdir().unwrap();
    let config = agent(dir.path(), "echo started >> log; echo 1.2.3");
    let scene = Scene::with(&config, Timeouts::default()).await;
    let answers = futures_util::future::join_all((0..8).map(|_| scene.get("/v1/agents"))).await;
    for answer in answers.into_iter().chain([scene.get("/v1/agents").await]) {
        let items = answer.body["items"].as_array().unwrap();
        let it = items.iter().find(|item| item["name"] == "it").unwrap();
        assert_eq!((answer.status, &it["found"]["version"]), (200, &"1.2.3".into()), "{it}");
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("log")).unwrap(), "started\n");
    let documented = format!("up to {} s old", SURVEY_MAX_AGE.as_secs());
    assert!(include_str!("../../docs/http.md").contains(&documented), "docs/http.md does not say: {documented}");
}

#[tokio::test]
async fn client_that_hangs_up_leaves_no_program_running() {
    let dir = tempfile::tempdir().unwrap();
    // A unique number: the same test may run in another checkout on this machine.
    let slept = format!("7702.{}", std::process::id());
    let script = format!("sleep {slept} & setsid sleep {slept} & : > started; exec sleep {slept}");
    let scene = Scene::with(&agent(dir.path(), &script), Timeouts::default()).await;
    let running = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let arguments = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        arguments.filter(|arguments| arguments.starts_with(format!("sleep\0{slept}").as_bytes())).count()
    };
    let mut client = TcpStream::connect(scene.address).await.unwrap();
    client.write_all(format!("GET /v1/agents HTTP/1.1\r\n{}\r\n", scene.head()).as_bytes()).await.unwrap();
    until(|| running() == 3).await;
    drop(client);
    until(|| running() == 0).await;
    assert!(dir.path().join("started").exists());
}

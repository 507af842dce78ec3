//! Agents that break rules.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::scene::Scene;

#[tokio::test]
async fn long_lines_and_lines_of_no_protocol_end_no_turn() {
    let scene = Scene::new("").await;
    assert_eq!(scene.turn("big 600000", None).await.text().len(), 600_000);
    let turn = scene.turn("garbage", None).await;
    assert_eq!((turn.text().as_str(), turn.stop_reason()), ("still here", Some("end_turn")));
    // Beyond the limit a line is as if it was not there.
    let turn = scene.turn("big 3000000", None).await;
    assert_eq!((turn.text().as_str(), turn.stop_reason()), ("", Some("end_turn")));
}

#[tokio::test]
async fn a_crash_in_the_midst_of_a_turn_is_told_with_the_agents_last_words() {
    let mut scene = Scene::new("load").await;
    let turn = scene.turn("crash", None).await;
    assert_eq!(turn.text(), "crashing");
    let error = turn.own("error");
    assert_eq!(error["class"], "crashed");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("exit status: 3") && message.contains("out of luck"), "{message}");
    let (code, stderr) = scene.ended().await;
    assert!(code == Some(1) && stderr.contains("out of luck"), "{stderr}");
    scene.start().await;
    let (id, origin) = turn.session();
    let turn = scene.turn("history", Some(&id)).await;
    assert_eq!((turn.text().as_str(), turn.session().1.as_str(), origin.as_str()), ("crash", "loaded", "new"));
}

#[tokio::test]
async fn a_turn_says_that_its_agent_is_gone_and_nothing_when_it_was_gone_before() {
    let mut scene = Scene::new("").await;
    let mut relay = scene.relay("wait", json!({})).await;
    relay.until("waiting").await;
    scene.end("-KILL").await;
    let turn = relay.end().await;
    assert_eq!((turn.own("error")["class"].as_str(), turn.code), (Some("crashed"), Some(1)));
    // Nothing is said, so that it can be tried again.
    let turn = scene.turn("say one", None).await;
    assert_eq!((turn.said.len(), turn.code), (0, Some(1)));
}

/// The directory in `/proc` of the agent's process.
fn agent_of(scene: &Scene) -> PathBuf {
    let agent = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let environ = std::fs::read(entry.path().join("environ")).ok()?;
        let log = format!("STUB_LOG={}", scene.dir.path().join("log").display());
        let is_agent = std::fs::read_to_string(entry.path().join("comm")).ok()?.starts_with("python3");
        (is_agent && environ.split(|byte| *byte == 0).any(|it| it == log.as_bytes())).then(|| entry.path())
    });
    agent.unwrap()
}

#[tokio::test]
async fn an_agent_that_is_killed_is_told_with_its_signal() {
    for message in ["say one", "hang"] {
        let mut scene = Scene::new("").await;
        let mut relay = scene.relay(message, json!({})).await;
        relay.until("agent_message_chunk").await;
        let pid = agent_of(&scene).file_name().unwrap().to_owned();
        assert!(Command::new("kill").arg("-KILL").arg(pid).status().unwrap().success());
        relay.end().await;
        let (code, stderr) = scene.ended().await;
        let last = stderr.lines().next_back();
        assert_eq!(
            (code, last),
            (Some(1), Some("mainstay: the agent ended (signal: 9 (SIGKILL))")),
            "{message}: {stderr}"
        );
    }
}

#[tokio::test]
async fn a_bridge_that_is_asked_to_end_ends_its_agent_first() {
    let mut scene = Scene::new("").await;
    scene.turn("say one", None).await;
    let agent = agent_of(&scene);
    scene.end("-TERM").await;
    assert!(!agent.exists());
}

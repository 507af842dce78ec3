//! What a person is told of an agent that cannot be started.

use std::path::Path;

use mainstay::config::Config;
use mainstay::engine::{Engine, Send};
use mainstay::id::MessageId;
use mainstay::message::UserMessage;
use mainstay::run::Run;
use mainstay::warm::Backend;
use serde_json::json;

use crate::scene::within;

/// A turn on an agent that is started with this command, and the backend that it was to be on, if one was made.
async fn turn_on(dir: &Path, command: &[&str], more: &str) -> (Run, Backend) {
    let text = format!(
        "[agents.live]\ndriver = \"acp\"\ncommand = {}\n{more}\n[workspaces.w]\nagent = \"live\"\n",
        json!(command)
    );
    let mut config = Config::load(&text, Path::new("test.toml"), dir).unwrap();
    config.engine.host_program = env!("CARGO_BIN_EXE_mainstay").into();
    let engine = Engine::open(&dir.join("m.db"), config).await.unwrap();
    engine.start().await.unwrap();
    let mut send = Send::new("s".parse().unwrap(), UserMessage::text(MessageId::generate(), "say hello").unwrap());
    send.workspace = Some("w".parse().unwrap());
    let sent = engine.send(send).await.unwrap().run;
    let mut follower = engine.follow_run(sent.id, 0).await.unwrap();
    within(async { while follower.next_events().await.unwrap().is_some() {} }).await;
    let (run, backend) = (engine.run(sent.id).await.unwrap(), engine.list_backends().await.unwrap().remove(0));
    engine.close().await;
    (run, backend)
}

#[tokio::test]
async fn a_program_that_is_not_there_is_missed_before_anything_is_started() {
    for (program, class, words) in [
        ("no-such-agent", json!("agent_missing"), "the program no-such-agent was not found: install it"),
        ("./gone/agent", json!("agent_missing"), "the program ./gone/agent was not found"),
        ("./text", json!(null), "./text must not be executed here"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("text"), "no program").unwrap();
        let (run, backend) = turn_on(dir.path(), &[program], "").await;
        let error = run.error.clone().unwrap();
        assert!(error.starts_with("Failed to start agent: ") && error.contains(words), "{error}");
        assert_eq!((json!(run.error_class), run.retry_at), (class, None), "{run:?}");
        assert_eq!((backend.generation, backend.pid), (1, None), "{backend:?}");
        assert!(error.ends_with(&backend.reason.unwrap()));
    }
}

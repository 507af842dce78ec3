//! A run of an engine whose agent lives in a gateway.

use std::path::Path;

use mainstay::config::Config;
use mainstay::engine::{Engine, MessageCursor, SendMessage};
use mainstay::id::MessageId;
use mainstay::message::{Attachment, UserMessage};
use serde_json::{Value, json};

use crate::gateway::scene::{FakeGateway, TOKEN, within};

#[tokio::test]
async fn a_message_with_a_file_becomes_a_run_of_the_gateways_agent() {
    let gateway = FakeGateway::start().await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[agents.claw]\ndriver = \"openclaw-gateway\"\nurl = \"{}\"\ntoken = \"{TOKEN}\"\ngateway_agent = \"x-{{slot}}\"\n\
         [workspaces.default]\nagent = \"claw\"\nslots = 1",
        gateway.url()
    );
    let mut config = Config::load(&text, Path::new("mainstay.toml"), dir.path()).unwrap();
    config.engine.shim_program = env!("CARGO_BIN_EXE_mainstay").into();
    let engine = Engine::open(&dir.path().join("m.db"), config).await.unwrap();
    engine.start().await.unwrap();
    let file =
        Attachment { media_type: "image/png".to_owned(), filename: None, url: "data:image/png;base64,AAAA".to_owned() };
    let message = UserMessage::with_files(MessageId::generate(), "look", &[file]).unwrap();
    let session: mainstay::id::SessionId = "s".parse().unwrap();
    let run = engine.send(SendMessage::new(session.clone(), message)).await.unwrap().run;

    let mut peer = gateway.accept("b").await;
    let asked = peer.accept_run().await;
    assert_eq!(asked["idempotencyKey"], json!(format!("{}-1", run.id)));
    assert_eq!(asked["attachments"][0]["content"], "AAAA");
    let agent = asked["agentId"].as_str().unwrap();
    assert!(agent.starts_with("x-chat-slot-default-"), "{agent}");
    assert_eq!(asked["sessionKey"], json!(format!("agent:{agent}:web:s")));
    peer.event(&asked["idempotencyKey"], 1, "lifecycle", json!({"phase": "start"})).await;
    peer.says(&asked["idempotencyKey"], 2, "a picture", "a picture").await;
    peer.event(&asked["idempotencyKey"], 3, "lifecycle", json!({"phase": "end"})).await;
    peer.answer("agent", json!({"runId": asked["idempotencyKey"], "status": "ok"})).await;

    let run = within(engine.wait_settled(run.id)).await.unwrap();
    assert_eq!((run.status.as_str(), run.error), ("completed", None));
    let page = engine.list_messages(&session, MessageCursor::START, 10, true).await.unwrap();
    let parts: Value = serde_json::from_str(page.messages[1].parts.get()).unwrap();
    assert!(parts.to_string().contains("a picture"), "{parts}");
    engine.drain(std::time::Duration::from_secs(5)).await;
    engine.close().await;
}

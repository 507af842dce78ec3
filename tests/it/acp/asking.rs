//! The agent's questions, as a chat shows them.

use crate::acp::scene::{AGENT, within};
use crate::acp::starting::{send, stub};

#[tokio::test]
async fn questions_asked_together_are_shown_together() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, run) = send(dir.path(), &AGENT, &stub(dir.path(), ""), "permissions").await;
    let mut follower = engine.follow_chat(run, 0).await.unwrap();
    let mut stream = String::new();
    while let Some(frames) = within(follower.next_frames()).await.unwrap() {
        stream.push_str(std::str::from_utf8(&frames).unwrap());
    }
    assert_eq!(stream.matches(r#"{"type":"tool-approval-request""#).count(), 2, "{stream}");
    assert!(stream.ends_with("\n\n"), "{stream}");
    engine.close().await;
}

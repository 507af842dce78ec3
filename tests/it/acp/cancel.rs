//! How a turn is cancelled.

use serde_json::json;

use crate::acp::scene::Scene;

#[tokio::test]
async fn what_the_agent_asks_is_taken_back_when_its_turn_is_cancelled() {
    let scene = Scene::new("").await;
    let mut relay = scene.relay("permissions", json!({})).await;
    relay.until("request_permission").await;
    relay.until("request_permission").await;
    relay.cancel().await;
    let turn = relay.end().await;
    assert_eq!((turn.stop_reason(), turn.code), (Some("cancelled"), Some(0)));
    assert!(turn.own("cancelling").is_object());
    assert_eq!(scene.sent("session/cancel").len(), 1);
}

#[tokio::test]
async fn turn_with_unread_output_is_cancelled() {
    let scene = Scene::new("").await;
    let mut relay = scene.relay("flood", json!({})).await;
    relay.until("flooding").await;
    relay.says_more().await;
    relay.cancel().await;
    scene.is_sent("session/cancel").await;
    assert_eq!(relay.end().await.stop_reason(), Some("cancelled"));
}

#[tokio::test]
async fn a_turn_whose_relay_is_killed_is_cancelled() {
    let scene = Scene::new("").await;
    let mut relay = scene.relay("wait", json!({})).await;
    let session = relay.until("mainstay").await["id"].as_str().unwrap().to_owned();
    relay.until("waiting").await;
    relay.kill().await;
    // The next turn waits until the agent has confirmed the cancel.
    let turn = scene.turn("history", Some(&session)).await;
    assert_eq!((turn.text().as_str(), turn.session().1.as_str()), ("wait", "reused"));
    assert_eq!(scene.sent("session/cancel").len(), 1);
}

#[tokio::test]
async fn end_turn_waits_for_agent_after_relay_is_killed() {
    let scene = Scene::new("").await;
    assert_eq!(scene.end_turn().await, Ok(()), "there is none");
    let mut relay = scene.relay("wait", json!({})).await;
    relay.until("waiting").await;
    relay.kill().await;
    assert_eq!(scene.end_turn().await, Ok(()));
    assert_eq!(scene.sent("session/cancel").len(), 1);
}

#[tokio::test]
async fn end_turn_does_not_answer_while_the_agent_may_live() {
    let mut scene = Scene::new("").await;
    let mut relay = scene.relay("hang", json!({})).await;
    relay.until("hanging").await;
    relay.kill().await;
    assert!(scene.end_turn().await.is_err());
    scene.ended().await;
    assert!(scene.end_turn().await.unwrap_err().contains("cannot be reached"));
}

#[tokio::test]
async fn an_agent_that_does_not_end_a_cancelled_turn_is_ended() {
    let mut scene = Scene::new("load").await;
    let mut relay = scene.relay("hang", json!({})).await;
    relay.until("hanging").await;
    relay.cancel().await;
    let turn = relay.end().await;
    assert_eq!((turn.stop_reason(), turn.said.last()), (None, Some(&json!({"mainstay": "left"}))));
    assert_eq!(turn.code, Some(1), "it may go on for a moment");
    let (code, stderr) = scene.ended().await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("did not end a cancelled turn"), "{stderr}");
    scene.start().await;
    assert_eq!(scene.turn("history", Some(&turn.session().0)).await.text(), "hang");
}

#[tokio::test]
async fn no_turn_begins_in_an_agent_that_does_not_end_the_one_before() {
    let mut scene = Scene::new("load").await;
    let mut relay = scene.relay("hang", json!({})).await;
    let session = relay.until("mainstay").await["id"].as_str().unwrap().to_owned();
    relay.until("hanging").await;
    relay.kill().await;
    let turn = scene.turn("say two", Some(&session)).await;
    assert_eq!(turn.own("error")["class"], "crashed");
    assert_eq!(scene.sent("session/prompt").len(), 1);
    scene.ended().await;
}

#[tokio::test]
async fn a_tool_that_a_cancelled_turn_left_running_is_ended() {
    let scene = Scene::new("").await;
    let mut relay = scene.relay("forget", json!({})).await;
    relay.until("tool ").await;
    relay.cancel().await;
    let turn = relay.end().await;
    let pid = turn.text().trim_start_matches("tool ").trim_end_matches('.').to_owned();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_else(|_| ") Z".to_owned());
    assert!(stat.contains(") Z"), "{stat}");
    assert_eq!(scene.turn("say two", Some(&turn.session().0)).await.text(), "two");
}

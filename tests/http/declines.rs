//! A message that is sent while an agent asks: the open questions are declined, and the message goes next.

use reqwest::Method;
use serde_json::{Value, json};

use crate::chat::{chat, user};
use crate::scene::{Scene, Streaming, chunks, said};

impl Scene {
    /// Sends `/ask` as a chat does, and reads up to the question: its id.
    async fn question(&self, id: &str) -> String {
        let stream = self.chat_to_end(&chat(&[user(id, "/ask x")], json!({}))).await;
        let last = chunks(&stream).pop().unwrap();
        assert_eq!(last["type"], "tool-approval-request", "{stream}");
        last["approvalId"].as_str().unwrap().to_owned()
    }

    /// The state of a question.
    pub async fn state(&self, question: &str) -> String {
        self.get(&format!("/v1/permissions/{question}")).await.text("state").to_owned()
    }
}

fn answered(question: &str, approved: bool) -> Value {
    let approval = json!({"id": question, "approved": approved});
    let tool = json!({"type": "dynamic-tool", "toolName": "write_file", "toolCallId": "call-1", "input": {},
        "state": "approval-responded", "approval": approval});
    json!({"id": "an-answer", "role": "assistant", "parts": [{"type": "step-start"}, tool]})
}

#[tokio::test]
async fn a_new_message_declines_open_questions_and_goes_next() {
    let scene = Scene::executing().await;
    let question = scene.question("m").await;
    let later = json!({"message": {"id": "later", "text": "later"}, "priority": 1000});
    assert_eq!(scene.post("/v1/sessions/s/runs", later.clone()).await.status, 202);
    assert_eq!(scene.state(&question).await, "pending", "other ways of sending decline nothing");
    let told = scene.chat_to_end(&chat(&[user("m", "/ask x"), user("n", "something else")], json!({}))).await;
    assert!(said(&told).contains("something else"), "{told}");
    let permission = scene.get(&format!("/v1/permissions/{question}")).await;
    assert_eq!((permission.text("state"), permission.text("answered_by")), ("denied", "admin"));
    assert_eq!(permission.text("reason"), "declined: a new message was sent");
    // The asking run continued with the denial to its end, and the new message went before those that waited.
    let last = Streaming::open(
        scene.ask(Method::POST, "/v1/sessions/s/runs").header("accept", "text/event-stream").json(&later),
    );
    assert!(said(&last.await.rest().await.unwrap()).contains("later"));
    assert_eq!(scene.statuses().await, ["completed"; 3]);
    let shown = ["/ask x", "(answer)", "something else", "(answer)", "later", "(answer)"];
    assert_eq!(scene.texts("items").await, shown);
    let stored = scene.get("/v1/sessions/s/messages").await.body;
    let tool = stored["items"][1]["parts"].as_array().unwrap().iter().find(|part| part["type"] == "dynamic-tool");
    assert_eq!(tool.unwrap()["state"], "output-denied");
}

#[tokio::test]
async fn a_resend_declines_nothing() {
    let scene = Scene::executing().await;
    let question = scene.question("m").await;
    assert_eq!(scene.question("m").await, question);
    assert_eq!(scene.state(&question).await, "pending");
    let refused = Streaming::open(scene.ask(Method::POST, "/api/chat").json(&chat(&[user("m", "other")], json!({}))));
    assert_eq!(refused.await.status, 409);
    let reject = chat(&[user("n", "new")], json!({"when_busy": "reject"}));
    assert_eq!(Streaming::open(scene.ask(Method::POST, "/api/chat").json(&reject)).await.status, 409);
    assert_eq!(scene.state(&question).await, "pending", "nor does what is refused");
}

#[tokio::test]
async fn answers_are_read_from_any_message_of_the_assistant() {
    for approved in [false, true] {
        let scene = Scene::executing().await;
        let question = scene.question("m").await;
        // The request also has answers that are not for Mainstay.
        let foreign = json!({"id": "f", "role": "assistant", "parts": [
            {"type": "tool-x", "state": "approval-responded", "approval": {"id": "not-ours", "approved": true}},
            {"type": "tool-x", "state": "approval-responded", "approval": null},
            {"type": "tool-x", "state": "approval-responded",
             "approval": {"id": "0192f0c1-2345-7000-8000-0123456789ab", "approved": true}}]});
        let messages = [foreign, user("m", "/ask x"), answered(&question, approved), user("n", "and now this")];
        let told = scene.chat_to_end(&chat(&messages, json!({}))).await;
        assert!(said(&told).contains("and now this"), "{told}");
        assert_eq!(scene.state(&question).await, if approved { "allowed" } else { "denied" });
        assert!(scene.get(&format!("/v1/permissions/{question}")).await.body["reason"].is_null());
        assert_eq!(scene.statuses().await, ["completed"; 2]);
    }
}

#[tokio::test]
async fn an_illegal_answer_in_a_history_fails_no_send() {
    let scene = Scene::executing().await;
    let question = scene.question("m").await;
    let mut illegal = answered(&question, true);
    illegal["parts"][1]["approval"]["reason"] = json!("\u{1b}[2J");
    let told = scene.chat_to_end(&chat(&[user("m", "/ask x"), illegal, user("n", "go on")], json!({}))).await;
    assert!(said(&told).contains("go on"), "{told}");
    let permission = scene.get(&format!("/v1/permissions/{question}")).await;
    assert_eq!(permission.text("reason"), "declined: a new message was sent");
}

#[tokio::test]
async fn an_answer_in_an_earlier_message_of_the_assistant_counts() {
    let scene = Scene::executing().await;
    let question = scene.question("m").await;
    let note = json!({"id": "note", "role": "assistant", "parts": [{"type": "text", "text": "a note of the page"}]});
    let messages = [user("m", "/ask x"), answered(&question, true), note];
    let rest = scene.chat_to_end(&chat(&messages, json!({}))).await;
    assert_eq!(chunks(&rest).pop().unwrap()["type"], "finish");
    assert_eq!(scene.state(&question).await, "allowed");
}

#[tokio::test]
async fn an_answer_that_comes_too_late_gets_the_rest_of_the_stream() {
    let scene = Scene::executing().await;
    let question = scene.question("m").await;
    let decided = scene.post(&format!("/v1/permissions/{question}"), json!({"approved": false})).await;
    assert_eq!(decided.status, 200);
    let late = chat(&[user("m", "/ask x"), answered(&question, true)], json!({}));
    let rest = chunks(&scene.chat_to_end(&late).await);
    assert_eq!(rest[0]["type"], "tool-output-denied");
    assert_eq!(rest.last().unwrap()["messageMetadata"]["status"], "completed");
    assert_eq!(scene.state(&question).await, "denied");
    let elsewhere = scene.post(&format!("/v1/permissions/{question}"), json!({"approved": true})).await;
    assert_eq!(elsewhere.refused(), (409, "decided"));
}

#[tokio::test]
async fn an_answer_to_a_stopped_run_gets_its_end() {
    let scene = Scene::executing().await;
    let question = scene.question("m").await;
    scene.post_nothing("/api/chat/s/stop?wait=30").await;
    assert_eq!(scene.state(&question).await, "cancelled");
    let late = chat(&[user("m", "/ask x"), answered(&question, true)], json!({}));
    let rest = chunks(&scene.chat_to_end(&late).await);
    let kinds: Vec<_> = rest.iter().map(|chunk| chunk["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["tool-output-denied", "finish-step", "abort", "finish"]);
    assert_eq!(rest[3]["messageMetadata"], json!({"status": "cancelled", "cause": "cancelled"}));
}
